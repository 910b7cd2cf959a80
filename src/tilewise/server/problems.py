"""Errors as clients see them: exceptions, and paths that are not here, become OpenAI's error body."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NotRequired

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from typing_extensions import TypedDict  # pydantic asks for this one, under Python 3.11

from tilewise.errors import TilewiseError, TooLong, UnknownModel, did_you_mean

logger = logging.getLogger("tilewise")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 80
_BRANCHES = ("str", "int", "float", "bool")
"""Branches of unions that pydantic names in an error's place, as it does classes, lists and literals."""
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 501: "NotImplementedError", 503: "ServiceUnavailableError"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_ANTHROPIC_PATHS = ("/v1/messages/", "/v1/messages/count_tokens/")


class ErrorObject(TypedDict):
    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(TypedDict):
    """An error, with the value, the limit and the remedy."""

    error: ErrorObject
    type: NotRequired[Literal["error"]]
    """Present on the routes of Anthropic's API."""


@dataclass(frozen=True)
class Problem:
    """One error as a client sees it."""

    status: int
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Problem:
        if isinstance(error, TooLong):
            return cls(400, _context_text(error), "max_tokens" if error.prompt_tokens < error.limit else None)
        if isinstance(error, ValidationError):
            return cls(400, *_first_error(error))
        if isinstance(error, UnknownModel):
            return cls(404, str(error), "model")
        if isinstance(error, TilewiseError):
            return cls(error.http_status, str(error), getattr(error, "param", None))
        return cls(500, "The server met an error of its own; its log says which.")

    @property
    def body(self) -> ErrorBody:
        kind = _TYPES.get(self.status, "InternalServerError" if self.status >= 500 else HTTPStatus(self.status).phrase)
        message = _ADDRESS.sub("", self.message)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.status}}

    @property
    def anthropic_body(self) -> ErrorBody:
        """The body with a type of Anthropic's API, by which its clients tell errors apart."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {**self.body["error"], "type": kind}}

    def response(self, headers: Mapping[str, str] | None = None, path: str = "") -> Response:
        """Return the error as the API of a path writes it."""
        return JSONResponse(self.anthropic_body if _of_anthropic(path) else self.body, self.status, headers)


def _of_anthropic(path: str) -> bool:
    return f"{path}/".endswith(_ANTHROPIC_PATHS)


def unauthorized(path: str) -> Response:
    """Return the refusal of a request without a key; but for Anthropic's API, the words are vLLM's, as clients of both
    read them.
    """
    headers = {"WWW-Authenticate": "Bearer"}
    if _of_anthropic(path):
        return Problem(401, "The key is missing or wrong: send it as x-api-key.").response(headers, path)
    return JSONResponse({"error": "Unauthorized"}, 401, headers)


def problem_of(error: BaseException) -> Problem:
    """Return `Problem.of`; an error that is nobody's fault but ours is logged as a whole."""
    problem = Problem.of(error)
    if problem.status == 500:
        logger.error("A request failed", exc_info=error)
    return problem


def _context_text(error: TooLong) -> str:
    """Return vLLM's sentences, whose numbers clients read to shorten a conversation; then our own, with the remedy."""
    total = error.prompt_tokens + error.output_tokens
    return (
        f"This model's maximum context length is {error.limit} tokens. However, you requested {error.output_tokens} "
        f"output tokens and your prompt contains {error.prompt_tokens} input tokens, for a total of {total} tokens. "
        "Please reduce the length of the input prompt or the number of requested output tokens. "
        f"{error}"
    )


def shortened(value: Any) -> str:
    """Return the beginning of a value as Python writes it, without writing megabytes of it first."""
    return repr(value[:80])[:80] if isinstance(value, str) else _SHORT.repr(value)[:80]


def _first_error(error: ValidationError) -> tuple[str, str]:
    """Return the message about the first thing that is wrong, and its field, such as `messages[0].role`."""
    found = error.errors(include_url=False, include_context=False)[0]
    # Indices and fields of the body are kept, which are lower-case identifiers; pydantic's own words are not, but for
    # the branches.
    place = [
        part
        for part in found["loc"]
        if isinstance(part, int) or (part.isidentifier() and part.islower() and part not in _BRANCHES)
    ]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    reason = found["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = f", got {shortened(found['input'])}" if found["type"] != "missing" else ""
    return f"{param or 'body'}: {reason[:1].lower()}{reason[1:]}{value}.", param


Handler = Callable[[Request, Exception], Awaitable[Response]]
_CHAT = "send the conversation to /v1/chat/completions"
_TEXT = "InternVL models answer with text and make no {}: ask a server that does, or /v1/chat/completions for text"
_ABSENT: tuple[tuple[str, str], ...] = (
    (r"/(v1/|v2/)?(embeddings?|embed)|/api/embed(dings)?", _TEXT.format("embeddings")),
    (r"/(v1/|v2/)?(rerank(ing)?|score|classify|pooling)|/generative_scoring", _TEXT.format("scores of documents")),
    (
        r"/v1/encode",
        "Pictures are encoded by `tilewise encode-server`, a server of its own; here they come in messages of "
        "/v1/chat/completions",
    ),
    (r"/v1/messages/batches(/.*)?", "Batches are run by the command `tilewise run-batch`, without a server"),
    (r"/v1/(un)?load_lora_adapter|/lora-adapters", "An adapter is merged as the model is loaded, by --adapter"),
    (r"/v1/(audio|realtime)(/.*)?", "Sound is not understood here: send text, pictures and videos"),
    (r"/v1/(images|videos)(/.*)?", _TEXT.format("pictures or videos")),
    (r"/v1/(files|uploads)(/.*)?", "Files are not kept here: send media in messages, as URLs or data URLs"),
    (r"/v1/batches(/.*)?", "Batches are run by the command `tilewise run-batch`, without a server"),
    (r"/v1/fine_tuning(/.*)?", "Models are not trained here"),
    (r"/v1/moderations", f"There is no moderation model: {_CHAT} that asks for a judgement"),
    (
        r"/v1/(assistants|threads|conversations|vector_stores|containers|evals|prompts|chatkit)(/.*)?",
        "Nothing of this kind is kept here: /v1/responses and /v1/chat/completions take whole conversations",
    ),
    (r"/v1/organization(/.*)?", "There are no organizations: keys are given by --api-key"),
    (r"/v1/edits|/v1/engines(/.*)?", "OpenAI has given this route up: use /v1/chat/completions"),
    (r"/completions?|/infill|/v1/completion", "Text is continued by POST /v1/completions"),
    (
        r"/chat/completions|/v1/chat|/v1/chat/completion|/chat",
        "Conversations are answered by POST /v1/chat/completions",
    ),
    (r"/models|/v1/model|/get_model_info|/model_info|/info|/props|/slots", "What is served is told by GET /v1/models"),
    (r"/apply-template|/v1/tokenize", "POST /tokenize shows the tokens of a conversation"),
    (r"/v1/detokenize", "POST /detokenize gives the text of tokens"),
    (r"/v1/responses/input_tokens", "Tokens of a conversation are counted by POST /tokenize"),
    (r"/v1/responses/compact", "Conversations are not shortened here: send what the model has to know as input"),
    (r"/responses", "Responses are made by POST /v1/responses"),
    (r"/api/.*", f"Ollama's API is not served: {_CHAT}"),
    (r"/(v1/)?chat/interactive", f"LMDeploy's interactive sessions are not kept: {_CHAT}, with its whole history"),
    (
        r"/(generate|generate_stream|v1/generate)|/inference/.*",
        "Prompts and token ids are continued by /v1/completions",
    ),
    (r"/v2/.*|/cohere/.*", f"Neither Triton's API nor Cohere's is served: {_CHAT}"),
    (r"/v1/realtime|/sessions?(/.*)?", f"Sessions are not kept: {_CHAT}"),
    (r"/v1beta/.*", f"Gemini's API is not served: {_CHAT}"),
    (
        r"/(reset_(prefix|mm|encoder)_cache|server_info|flush_cache)",
        "This is a route for developers: start the server with VLLM_SERVER_DEV_MODE=1, which has /reset_prefix_cache, "
        "/reset_mm_cache, /reset_encoder_cache and /server_info",
    ),
    (r"/(sleep|wake_up|is_sleeping|collective_rpc|pause|resume)", "Engines do not sleep here: stop the server"),
    (r"/(start|stop)_profile", "There is no profiler: /metrics and traces tell where the time goes"),
    (r"/tokenizer_info", "Start the server with --enable-tokenizer-info-endpoint for this route"),
    (r"/(docs|redoc|openapi\.json)", "The server runs with --disable-fastapi-docs"),
    (r"/v1/v1(/.*)?", "The address has /v1 twice: end the client's base URL with one"),
    (r"/(v1)?", "Conversations are answered by POST /v1/chat/completions, and models listed by GET /v1/models"),
)
"""Patterns of whole paths -> what to do instead; the first that matches is said."""
_PATTERNS = [(re.compile(path), says) for path, says in _ABSENT]
_OVERSHADOWED = re.compile(r"/v1/responses/(input_tokens|compact)")
"""Paths that are not here, though they look like those of a response that is asked for by its id."""
_MOST_SHOWN = 80  # characters of a path
_ENCODE = "/v1/encode"


def routing_error(routes: Sequence[APIRoute]) -> Handler:
    """Return a handler for what the router cannot place among `routes`: no such path, or not with this method."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        overshadowed = _OVERSHADOWED.fullmatch(path) is not None
        if error.status_code == 405 and not overshadowed:
            methods = ", ".join(_methods(request, routes))
            message = f"Method Not Allowed: {path[:_MOST_SHOWN]} takes {methods}, got {request.method[:20]}."
            return Problem(405, message).response({"Allow": methods})
        if error.status_code not in (404, 405):
            return Problem(error.status_code, str(error.detail)).response(error.headers)
        paths = [route.path for route in routes]
        message = _encodes_alone(path) if _ENCODE in paths else not_found_text(path, paths)
        return Problem(404, message).response()

    return answer


def _encodes_alone(path: str) -> str:
    return (
        f"Not Found: {path[:_MOST_SHOWN] or '/'} is not served. This server encodes pictures (POST {_ENCODE}); one of "
        "`tilewise serve --enable-mm-embeds` answers questions about them."
    )


def _methods(request: Request, routes: Sequence[APIRoute]) -> list[str]:
    matching = (route for route in routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in matching for method in route.methods or ()})


def not_found_text(path: str, known: Sequence[str]) -> str:
    """Return a sentence or two about a path that is none of the known ones.

    >>> not_found_text("/v1/chat/completion", [])
    'Not Found: /v1/chat/completion is not served. Conversations are answered by POST /v1/chat/completions.'
    """
    says = next((f" {says}." for pattern, says in _PATTERNS if pattern.fullmatch(path)), None)
    shown = path[:_MOST_SHOWN] or "/"
    return f"Not Found: {shown} is not served.{did_you_mean(shown, known) if says is None else says}"
