"""RequestId: the name of one request, alike in the header X-Request-Id, in the id of its answer and in the log."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

from tilewise.errors import InvalidField

_FORM = re.compile("[!#-;=?-~]{1,128}")
HEADER = "X-Request-Id"
RULE = "must be 1 to 128 characters of ASCII without blanks, quotes and angle brackets"


@dataclass
class RequestId:
    """The id that a header named, or else the one of the body, or else a new one."""

    text: str
    from_header: bool

    @classmethod
    def of(cls, header: str | None = None) -> RequestId:
        """Take the id of X-Request-Id; in place of one that breaks the rule, as of none, there is a new one."""
        if header is not None and _FORM.fullmatch(header):
            return cls(header, from_header=True)
        return cls(uuid.uuid4().hex, from_header=False)

    def or_of_body(self, request_id: str | None) -> str:
        """Return the id, which is the body's if there is one and no header named another. Raises InvalidField."""
        if request_id is not None and not self.from_header:
            if not _FORM.fullmatch(request_id):
                raise InvalidField("request_id", f"request_id {RULE}, got {request_id!r:.80}.")
            self.text = request_id
        return self.text
