"""A server's prompts against a checkpoint's own: probes are asked, counts are compared, and causes are sought.

What to do about a cause is said in the flags of the server that was asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tilewise.chat_server import ChatServer, ServerProblem
from tilewise.doctor.probes import looks, picture_probes, text_probes
from tilewise.doctor.prompts import Cause, OwnPrompts, PromptVariant, best

Verdict = Literal["right", "off", "not told"]
_TOP = 5
_SAME = 0.02
"""Differences of two distributions, 0 to 2, that count as none: a server computes a batch in another order."""
_PART = 0.1
"""A difference that counts as none, as a share of what another picture makes."""


@dataclass(frozen=True)
class ProbeReport:
    """The outcome of one probe."""

    part: Literal["text", "pictures", "look"]
    probe: str
    verdict: Verdict
    own: int | None = None
    """Tokens of the model's own prompt; of pictures, those that they add to the question alone."""
    found: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Finding:
    """A likely cause of what is off, and what to do about it."""

    text: str
    causes: tuple[Cause, ...]
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class ServerReport:
    """All that was found about a server."""

    url: str
    server: ServerKind
    served: str
    model: str
    probes: tuple[ProbeReport, ...]
    findings: tuple[Finding, ...]

    @property
    def off(self) -> list[ProbeReport]:
        return [probe for probe in self.probes if probe.verdict == "off"]

    @property
    def told(self) -> bool:
        """True if texts and pictures could be compared at all."""
        told = {probe.part for probe in self.probes if probe.verdict != "not told"}
        return {"text", "pictures"} <= told

    @property
    def name(self) -> str:
        return NAMES[self.server]


Asked = tuple[int | None, str]
"""Tokens of a prompt as a server counts them, or None and why it does not say."""


class ServerDoctor:
    """An examination of one server."""

    def __init__(self, server: ChatServer, served: str | None, prompts: OwnPrompts, frames: int | None) -> None:
        """Ask which models there are. Raises ServerProblem."""
        cards = server.models()
        if not cards and served is None:
            raise ServerProblem(f"{server.url}/models names no model: give --served-model-name.")
        self._server, self._prompts, self._kind = server, prompts, kind_of(cards)
        self._served = served or str(cards[0]["id"])
        self._texts = text_probes(prompts.marks)
        self._pictures = list(picture_probes(prompts.tile_size, frames))
        self._looks = looks()

    @property
    def count(self) -> int:
        """Number of requests, but for those to /tokenize."""
        return len(self._texts) + len(self._pictures) + len(self._looks)

    def examine(self, advance: Callable[[int], None]) -> ServerReport:
        """Ask everything, and move the bar. Raises ServerProblem if nobody answers at all."""
        texts, text_finding = self._examine_texts(advance)
        pictures, picture_finding = self._examine_pictures(texts[0], advance)
        seen = {name: self._distribution(wire, advance) for name, wire in self._looks.items()}
        lost = picture_finding is not None and "lost" in picture_finding.causes
        found = [*texts, *pictures, *self._judge_looks(seen, lost)]
        findings = tuple(one for one in (text_finding, picture_finding) if one is not None)
        model = self._prompts.inputs.config.model
        return ServerReport(self._server.url, self._kind, self._served, model, tuple(found), findings)

    def _body(self, wire: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"model": self._served, "messages": wire, "max_tokens": 1, "temperature": 0, **more}

    def _count(self, wire: list[dict[str, Any]], advance: Callable[[int], None]) -> Asked:
        try:
            answer = self._server.whole_answer(self._body(wire))
        except ServerProblem as problem:
            return None, f"it is refused: {problem}"
        finally:
            advance(1)
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(count, int) and count > 0:
            return count, ""
        return None, "its answers have no usage.prompt_tokens"

    # ------------------------------------------------------------------ text

    def _examine_texts(self, advance: Callable[[int], None]) -> tuple[list[ProbeReport], Finding | None]:
        own = [list(self._prompts.request(probe.wire).prompt_ids) for probe in self._texts]
        asked = [self._count(probe.wire, advance) for probe in self._texts]
        reports = []
        for probe, ids, (count, why) in zip(self._texts, own, asked, strict=True):
            spelled = self._tokens(probe.wire)
            if spelled is not None and spelled != ids:
                why, count = self._first_difference(ids, spelled), len(spelled) if count is None else count
            verdict: Verdict = "not told" if count is None else "off" if why or count != len(ids) else "right"
            reports.append(ProbeReport("text", probe.name, verdict, len(ids), count, why))
        if not any(report.verdict == "off" for report in reports):
            return reports, None
        found = [report.found for report in reports]
        likely = best(self._prompts.text_variants(self._texts), found, [len(ids) for ids in own])
        return reports, self._explained(likely, found, _OTHER_TOKENIZER)

    def _tokens(self, wire: list[dict[str, Any]]) -> list[int] | None:
        """Return the ids of a conversation, where the server tells them."""
        try:
            found = self._server.tokenize({"model": self._served, "messages": wire})
        except ServerProblem:
            return None
        ids = found.get("tokens") if found else None
        return ids if isinstance(ids, list) and ids and all(isinstance(token, int) for token in ids) else None

    def _first_difference(self, own: Sequence[int], found: Sequence[int]) -> str:
        pairs = zip(own, found, strict=False)
        place = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own), len(found)))
        ours, theirs = (self._spelled(ids[place : place + 6]) for ids in (own, found))
        return f"its prompt differs from token {place} on: {theirs} in place of {ours}"

    def _spelled(self, ids: Sequence[int]) -> str:
        try:
            return repr(self._prompts.inputs.tokenizer.decode(ids, skip_special_tokens=False)) if ids else "the end"
        except (OverflowError, TypeError):  # ids that this tokenizer cannot have
            return str(list(ids))

    # -------------------------------------------------------------- pictures

    def _examine_pictures(
        self, alone: ProbeReport, advance: Callable[[int], None]
    ) -> tuple[list[ProbeReport], Finding | None]:
        """Compare what pictures add to the question alone, whatever the template makes of that."""
        assert alone.own is not None
        own = [len(self._prompts.request(probe.wire).prompt_ids) - alone.own for probe in self._pictures]
        asked = [self._count(probe.wire, advance) for probe in self._pictures]
        reports = []
        for probe, right, (count, why) in zip(self._pictures, own, asked, strict=True):
            more = None if count is None or alone.found is None else count - alone.found
            verdict: Verdict = "not told" if more is None else "right" if self._fits(more, right) else "off"
            reports.append(ProbeReport("pictures", probe.name, verdict, right, more, why))
        off = [probe for probe, report in zip(self._pictures, reports, strict=True) if report.verdict == "off"]
        if not off:
            return reports, None
        if not any(probe.sizes for probe in off):
            return reports, self._finding(("frames",), _OTHER_FRAMES)
        found, rows = [report.found for report in reports], self._prompts.inputs.spec.tokens_per_tile
        if all(more is None or more < min(rows, 64) for more in found):
            return reports, self._finding(("lost",), _LOST)
        likely = best(self._prompts.picture_variants(self._pictures, own), found, own)
        return reports, self._explained(likely, found, _OTHER_PICTURES)

    def _fits(self, found: int, own: int) -> bool:
        """Return whether a count is right; a router leaves tiles a quarter of their tokens, as it sees them."""
        return own // 4 <= found <= own if self._prompts.varies else found == own

    def _explained(self, likely: PromptVariant | None, found: Sequence[int | None], otherwise: str) -> Finding:
        if likely is None:
            return Finding(otherwise, (), ())
        explained, measured = likely.matches(found), sum(count is not None for count in found)
        extent = "" if explained == measured else f" (which explains {explained} of {measured} counts)"
        return self._finding(likely.causes, likely.text + extent)

    def _finding(self, causes: tuple[Cause, ...], text: str) -> Finding:
        tiling = self._prompts.inputs.spec.tiling
        numbers = {"max_dynamic_patch": tiling.max_tiles, "use_thumbnail": tiling.thumbnail}
        remedies = dict.fromkeys(remedy(cause, self._kind, json.dumps(numbers)) for cause in causes)
        return Finding(text, causes, tuple(remedies))

    # ----------------------------------------------------------------- looks

    def _distribution(self, wire: list[dict[str, Any]], advance: Callable[[int], None]) -> dict[str, float] | None:
        """Return the likeliest first tokens of an answer with their probabilities; None if the server tells none."""
        try:
            answer = self._server.whole_answer(self._body(wire, logprobs=True, top_logprobs=_TOP))
            (first,) = answer["choices"][0]["logprobs"]["content"]
            return {str(one["token"]): math.exp(float(one["logprob"])) for one in first["top_logprobs"]}
        except (ServerProblem, LookupError, TypeError, ValueError):
            return None
        finally:
            advance(1)

    def _judge_looks(self, seen: dict[str, dict[str, float] | None], lost: bool) -> Iterator[ProbeReport]:
        """Compare first tokens; that no picture makes a difference is a fault where pictures are `lost` by count."""

        def apart(one: str, other: str) -> float | None:
            a, b = seen[one], seen[other]
            return None if a is None or b is None else sum(abs(a.get(x, 0) - b.get(x, 0)) for x in {*a, *b})

        other = apart("upright", "upside down")
        if other is None or other <= _SAME:
            why = "another picture makes no difference to the model" if other is not None else "there are no logprobs"
            verdict: Verdict = "off" if other is not None and lost else "not told"
            yield ProbeReport("look", "pictures are seen", verdict, why=why)
            return
        yield ProbeReport("look", "pictures are seen", "right")
        turned = self._nearer("turned", "upright", "upside down", apart)
        yield _look("pictures are turned upright (EXIF)", turned, self._prompts.inputs.config.exif_orientation, _TURN)
        yield _look("transparency is white", self._nearer("transparent", "on white", "on black", apart), True, _WHITE)
        moved = apart("text first", "upright")
        first = None if moved is None else moved <= max(_SAME, _PART * other)
        yield _look("pictures stand before the text", first, self._prompts.media_first, _ORDER)

    def _nearer(self, one: str, yes: str, no: str, apart: Callable[[str, str], float | None]) -> bool | None:
        """Return whether an answer is rather that of `yes` than that of `no`; None where those hardly differ."""
        to_yes, to_no, between = apart(one, yes), apart(one, no), apart(yes, no)
        if to_yes is None or to_no is None or between is None or between <= _SAME:
            return None
        return to_yes < to_no


def _look(probe: str, found: bool | None, own: bool, remedy: str) -> ProbeReport:
    if found is None:
        return ProbeReport("look", probe, "not told", why="both ways look alike to the model")
    return ProbeReport("look", probe, "right" if found == own else "off", why="" if found == own else remedy)


_OTHER_TOKENIZER = (
    "no template that is known counts like this: it may have another checkpoint's tokenizer; compare the tokenizer "
    "files of both, and the model that it serves"
)
_OTHER_PICTURES = (
    "no way to cut pictures that is known counts like this: it may serve another model, or resize them first"
)
_OTHER_FRAMES = "it takes other frames of a video, or another number of them"
_LOST = "pictures take no tokens: they are lost on the way, or left out of usage.prompt_tokens"
_TURN = "turn pictures as their EXIF says before they are sent, or do not: the server does the other thing"
_WHITE = "lay pictures with transparency on white before they are sent"
_ORDER = "send the parts of a message in the order of the training: pictures, then text"


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
