"""Remedies: what to do about a cause, in the flags of the server that was asked."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.doctor.prompts import Cause

ServerKind = Literal["tilewise", "vllm", "sglang", "lmdeploy", "llamacpp", "unknown"]
_KNOWN: tuple[ServerKind, ...] = ("tilewise", "vllm", "sglang", "lmdeploy", "llamacpp")
NAMES: dict[ServerKind, str] = {
    "tilewise": "Tilewise",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "lmdeploy": "LMDeploy",
    "llamacpp": "llama.cpp",
    "unknown": "a server that does not say what it is",
}
_TEMPLATE: dict[ServerKind, str] = {
    "tilewise": "serve this checkpoint itself: its template is built in, and `tilewise inspect` shows it",
    "vllm": "--chat-template FILE, with a Jinja file that writes what `tilewise inspect MODEL` shows",
    "sglang": "--chat-template FILE, with a Jinja file that writes what `tilewise inspect MODEL` shows",
    "lmdeploy": "--chat-template FILE.json, with the model_name of this family and the system text as meta_instruction",
    "llamacpp": "--jinja --chat-template-file FILE, with a Jinja file that writes what `tilewise inspect MODEL` shows",
    "unknown": "give it the template that `tilewise inspect MODEL` shows",
}
_TILES: dict[ServerKind, str] = {
    "tilewise": "--mm-processor-kwargs '{kwargs}', or leave that flag out",
    "vllm": "--mm-processor-kwargs '{kwargs}', and config.json and preprocessor_config.json as published",
    "sglang": "config.json and preprocessor_config.json as published, from which it takes how pictures are cut",
    "lmdeploy": "max_dynamic_patch in each image_url of a request",
    "llamacpp": "a newer build, and an mmproj file that was converted with it: old ones show one tile of each picture",
    "unknown": "config.json and preprocessor_config.json as published, {kwargs}",
}
_FRAMES: dict[ServerKind, str] = {
    "tilewise": "--num-frames, on both sides",
    "vllm": """--media-io-kwargs '{"video": {"num_frames": N}}', with the N of --num-frames here""",
}
_ANYWHERE: dict[Cause, str] = {
    "start": "one start token: either the template writes it or the tokenizer adds it (add_special_tokens), not both",
    "space": "a template without `| trim`, as the model was trained on texts as they are",
    "special": "nobody may write control tokens: take them out of users' texts before they are sent",
    "budget": "max_dynamic_patch for each picture, as the reference infers, or shared, as it trained (--tile-budget)",
    "marks": "a template with <img> and </img> around the rows of a picture, and the line break behind them",
    "lost": "a model of pictures with its tower (llama.cpp: --mmproj FILE), and content as a list of parts that no "
    "proxy between flattens to text",
}


def kind_of(cards: list[dict[str, Any]]) -> ServerKind:
    """Return what a server is, by the owner that its list of models names."""
    owners = [str(card.get("owned_by", "")).lower() for card in cards]
    return next((kind for owner in owners for kind in _KNOWN if kind in owner), "unknown")


def remedy(cause: Cause, kind: ServerKind, kwargs: str) -> str:
    """Return what to do; `kwargs` are the model's own numbers of tiles, as JSON."""
    if cause in ("template", "system"):
        return _TEMPLATE[kind]
    if cause in ("tiles", "thumbnail"):
        return _TILES[kind].replace("{kwargs}", kwargs)
    if cause == "frames":
        return _FRAMES.get(kind, "send the frames that you mean as pictures, a tile each")
    return _ANYWHERE[cause]
