"""BatchResult: a line of the output, in the form of OpenAI's batches."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tilewise.jobs.source import InputLine
from tilewise.jobs.task import Fault, Task

PREFIX = b'{"id": "batch_req_'
_ID = re.compile(r"batch_req_([1-9]\d{0,18})_([0-9a-f]{16})", re.ASCII)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A line's result: the server's `response`, whatever its status, or an `error` if it was not asked; one is None."""

    number: int
    """Number of the input's line, from 1, blank lines not counted."""
    digest: int
    """64-bit digest of the input's line."""
    custom_id: str | None
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @classmethod
    def answered(cls, line: InputLine, task: Task, status: int, request_id: str, body: Any) -> BatchResult:
        response = {"status_code": status, "request_id": request_id, "body": body}
        return cls(line.number, line.digest, task.custom_id, response)

    @classmethod
    def not_asked(cls, line: InputLine, fault: Fault) -> BatchResult:
        error = {"code": fault.code, "message": fault.message}
        return cls(line.number, line.digest, fault.custom_id, error=error)

    @classmethod
    def read(cls, data: bytes) -> BatchResult:
        """Read a line of the output. Raises ValueError for what this program has not written whole."""
        try:
            found = json.loads(data)
            name = _ID.fullmatch(found["id"])
            response, error = found["response"], found["error"]
            if name is None or (response is None) is (error is None):
                raise ValueError(f"{found['id']!r:.80} is no id of a result")
            whole = cls(int(name[1]), int(name[2], 16), found["custom_id"], response, error)
            _ = whole.outcome, whole.tokens  # raise here, where something that they read is missing
        except (KeyError, TypeError, AttributeError, RecursionError) as failure:
            raise ValueError(f"no result: {failure}") from None
        return whole

    @property
    def line(self) -> bytes:
        found = {
            "id": f"batch_req_{self.number}_{self.digest:016x}",
            "custom_id": self.custom_id,
            "response": self.response,
            "error": self.error,
        }
        try:
            return json.dumps(found, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair in a custom_id, which only an escape can carry
            return json.dumps(found).encode() + b"\n"

    @property
    def outcome(self) -> str:
        """HTTP status of the response, or the code of the error."""
        return str(self.response["status_code"] if self.response is not None else (self.error or {})["code"])

    @property
    def failed(self) -> bool:
        return self.response is None or self.response["status_code"] >= 400

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt and of the answer, 0 where the response does not say."""
        body = self.response["body"] if self.response is not None else None
        usage = (body.get("usage") if isinstance(body, dict) else None) or {}
        asked = usage.get("prompt_tokens", usage.get("input_tokens", 0))
        return asked, usage.get("completion_tokens", usage.get("output_tokens", 0))
