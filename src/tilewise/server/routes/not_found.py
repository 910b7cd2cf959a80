"""Paths that are not here: each is answered with a sentence that says what there is instead, in OpenAI's error body."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from tilewise.errors import did_you_mean
from tilewise.server.errors import Problem

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
    (r"/v1/messages(/.*)?", f"Anthropic's API is not served: {_CHAT}, or put a gateway such as LiteLLM before it"),
    (r"/v1/(un)?load_lora_adapter|/lora-adapters", "Adapters are not served: merge the adapter into the checkpoint"),
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
            return JSONResponse(Problem(405, message).body, 405, {"Allow": methods})
        if error.status_code not in (404, 405):
            return JSONResponse(Problem(error.status_code, str(error.detail)).body, error.status_code, error.headers)
        paths = [route.path for route in routes]
        message = _encodes_alone(path) if _ENCODE in paths else absent(path, paths)
        return JSONResponse(Problem(404, message).body, 404)

    return answer


def _encodes_alone(path: str) -> str:
    return (
        f"Not Found: {path[:_MOST_SHOWN] or '/'} is not served. This server encodes pictures (POST {_ENCODE}); one of "
        "`tilewise serve --enable-mm-embeds` answers questions about them."
    )


def _methods(request: Request, routes: Sequence[APIRoute]) -> list[str]:
    matching = (route for route in routes if route.matches(request.scope)[0] != Match.NONE)
    return sorted({method for route in matching for method in route.methods or ()})


def absent(path: str, known: Sequence[str]) -> str:
    """Return a sentence or two about a path that is none of the known ones.

    >>> absent("/v1/chat/completion", [])
    'Not Found: /v1/chat/completion is not served. Conversations are answered by POST /v1/chat/completions.'
    """
    says = next((f" {says}." for pattern, says in _PATTERNS if pattern.fullmatch(path)), None)
    shown = path[:_MOST_SHOWN] or "/"
    return f"Not Found: {shown} is not served.{did_you_mean(shown, known) if says is None else says}"
