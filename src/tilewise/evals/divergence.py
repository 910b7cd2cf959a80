"""`tilewise eval divergence`: how far the next-token distributions of two checkpoints of one model lie apart.

The first model answers greedily; both then say at each token of its answer what they find likely. KL(first || second)
is taken over the `top` likeliest tokens of the first that the second also names, and all others as one: that is a lower
bound of the divergence over the whole vocabulary (data processing inequality: T. Cover, J. Thomas, Elements of
Information Theory, 2.8), and close to it where `top` tokens hold nearly all of the probability.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image
from rich.table import Table

from tilewise.entrypoints.llm import LLM
from tilewise.errors import InvalidCheckpoint, InvalidConfig, InvalidMedia
from tilewise.eval_options import DivergenceOptions
from tilewise.evals.comparison import read_engine
from tilewise.evals.results import as_json, check_outputs, print_report, write_text
from tilewise.sampling_params import SamplingParams
from tilewise.types import Logprob, RequestOutput

_PICTURES = Path(__file__).parents[1] / "demo" / "pictures"
_ABOUT_PICTURES = ("What is written here?", "Describe this image.", "请描述这张图片。", "How many objects are there?")
_TEXTS = (
    "Write a short story about a lighthouse keeper.",
    "用中文解释什么是光合作用。",
    "Write a Python function that reverses a list.",
    "What is 17 times 23? Explain each step.",
)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ComparedPrompt:
    text: str
    images: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([*(path.name for path in self.images), self.text])


@dataclass(frozen=True, slots=True)
class PromptDivergence:
    """The divergence at one prompt, as means over the tokens of the first model's answer."""

    prompt: str
    tokens: int
    kl: float
    """Mean KL divergence, in nats a token."""
    same_top: float
    """Share of tokens at which both models find the same one likeliest."""


@dataclass(frozen=True, slots=True)
class Divergence:
    first: str
    second: str
    top: int
    prompts: tuple[PromptDivergence, ...]
    """All prompts, those furthest apart first."""

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.prompts)

    @property
    def kl(self) -> float:
        return sum(one.kl * one.tokens for one in self.prompts) / self.tokens

    @property
    def same_top(self) -> float:
        return sum(one.same_top * one.tokens for one in self.prompts) / self.tokens


def measure_divergence(options: DivergenceOptions) -> None:
    """Run one engine after the other, print the table, and write what is asked for."""
    prompts = read_prompts(options.prompts)
    check_outputs(options.json, plot=options.plot)
    found = divergence(options.first, options.second, prompts, options.max_tokens, options.top)
    summary = (
        f"A: {found.first}\nB: {found.second}\n{found.tokens} tokens of {len(prompts)} answers: mean KL(A || B) "
        f"{found.kl:.5f} nats a token, the same likeliest token at {100 * found.same_top:.1f} %"
    )
    print_report(_table(found), [summary])
    if options.json:
        means = {"kl": found.kl, "same_top": found.same_top, "tokens": found.tokens}
        write_text(options.json, as_json(dataclasses.asdict(found) | means))
    if options.plot:
        draw(found, options.plot)


def divergence(first: str, second: str, prompts: Sequence[ComparedPrompt], max_tokens: int, top: int) -> Divergence:
    """Return how far the second engine's distributions are from the first's, along the first's answers.

    An engine is `MODEL` or `MODEL,option=value,...`. Raises InvalidConfig where they make different tokens of a prompt,
    InvalidMedia for a picture that cannot be read, and InvalidCheckpoint for probabilities that are not finite.
    """
    with LLM(**{"max_logprobs": top, **read_engine(first)}) as llm:
        said = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=top)
        answers = [llm.chat(_messages(prompt), said, use_tqdm=False)[0] for prompt in prompts]
    with LLM(**{"max_logprobs": top, **read_engine(second)}) as llm:
        pairs = zip(prompts, answers, strict=True)
        found = [_one(prompt, answer, _followed(llm, prompt, answer, top), (first, second)) for prompt, answer in pairs]
    return Divergence(first, second, top, tuple(sorted(found, key=lambda one: -one.kl)))


def _messages(prompt: ComparedPrompt) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_pil", "image_pil": image} for image in _opened(prompt)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}]


def _opened(prompt: ComparedPrompt) -> list[Image.Image]:
    try:
        return [Image.open(path) for path in prompt.images]
    except OSError as error:
        raise InvalidMedia(f"The picture of the prompt {prompt.name!r:.200} cannot be read: {error}.") from None


def _followed(llm: LLM, prompt: ComparedPrompt, answer: RequestOutput, top: int) -> list[Mapping[int, Logprob]]:
    """Return the second model's likeliest tokens at each token of the first one's answer, by id."""
    own = llm.chat(_messages(prompt), SamplingParams(max_tokens=1), use_tqdm=False)[0].prompt_token_ids
    if own != answer.prompt_token_ids:
        raise InvalidConfig(
            f"The two engines make other tokens of the prompt {prompt.name!r:.80}: they are not of one model."
        )
    token_ids = [*answer.prompt_token_ids, *answer.outputs[0].token_ids]
    asked: Any = {"prompt_token_ids": token_ids}
    if prompt.images:
        asked["multi_modal_data"] = {"image": _opened(prompt)}
    output = llm.generate(asked, SamplingParams(max_tokens=1, prompt_logprobs=top), use_tqdm=False)[0]
    scores = (output.prompt_logprobs or [])[len(answer.prompt_token_ids) :]
    return [score or {} for score in scores]


def _one(
    prompt: ComparedPrompt, answer: RequestOutput, second: Sequence[Mapping[int, Logprob]], engines: tuple[str, str]
) -> PromptDivergence:
    first = answer.outputs[0].logprobs or []
    for engine, said in zip(engines, (first, second), strict=True):
        for place, scores in enumerate(said, 1):
            if not scores or not all(math.isfinite(score.logprob) for score in scores.values()):
                raise InvalidCheckpoint(
                    f"{engine} has no probabilities at token {place} of the answer to {prompt.name!r:.80}: some of its "
                    "weights are no finite numbers, or its activations became too large; take another file."
                )
    pairs = list(zip(first, second, strict=True))
    return PromptDivergence(
        prompt.name,
        len(pairs),
        fmean(kl(_likely(a), _likely(b)) for a, b in pairs),
        fmean(_likeliest(a) == _likeliest(b) for a, b in pairs),
    )


def _likely(scores: Mapping[int, Logprob]) -> dict[int, float]:
    return {token_id: score.logprob for token_id, score in scores.items()}


def _likeliest(scores: Mapping[int, Logprob]) -> int:
    return max(scores, key=lambda token_id: scores[token_id].logprob)


def kl(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return KL(first || second) in nats, from log-probabilities by token id; all but the common tokens count as one.

    >>> round(kl({1: math.log(0.5), 2: math.log(0.5)}, {1: math.log(0.25), 2: math.log(0.75)}), 4)
    0.1438
    """
    common = [(first[token], second[token]) for token in first if token in second]
    total = sum(math.exp(p) * (p - q) for p, q in common)
    p_rest, q_rest = (max(0.0, 1 - sum(math.exp(pair[side]) for pair in common)) for side in (0, 1))
    # Where the second has next to nothing left for the other tokens, 1e-12 keeps the logarithm finite.
    if p_rest > 0:
        total += p_rest * math.log(p_rest / max(q_rest, 1e-12))
    return max(0.0, total)


def read_prompts(file: Path | None) -> list[ComparedPrompt]:
    """Read prompts from lines of JSON with `prompt` and perhaps `images`, paths relative to the file's folder.

    Without a file, return prompts that ship with the package. Raises InvalidConfig.
    """
    if file is None:
        pictures = sorted(path for path in _PICTURES.iterdir() if path.suffix in (".png", ".jpg"))
        about = [ComparedPrompt(_ABOUT_PICTURES[n % len(_ABOUT_PICTURES)], (path,)) for n, path in enumerate(pictures)]
        return about + [ComparedPrompt(text) for text in _TEXTS]
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"--prompts {file} cannot be read: {error}.") from None
    prompts = [_read_prompt(line, f"{file}, line {number}", file.parent) for number, line in enumerate(lines, 1)]
    if not prompts:
        raise InvalidConfig(f'--prompts {file} has no prompt: write lines such as {{"prompt": "What is this?"}}.')
    return prompts


def _read_prompt(line: str, where: str, folder: Path) -> ComparedPrompt:
    try:
        found = json.loads(line)
        text, images = found["prompt"], found.get("images", [])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidConfig(
            f'{where}: expected {{"prompt": TEXT, "images": [FILE, ...]}}, got {line!r:.100}.'
        ) from None
    if not isinstance(text, str) or not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise InvalidConfig(f"{where}: prompt must be a text and images a list of files, got {line!r:.100}.")
    return ComparedPrompt(text, tuple(folder / one for one in images))


def _table(found: Divergence) -> Table:
    table = Table(title="furthest apart")
    table.add_column("prompt", overflow="fold")
    for title in ("tokens", "KL, nats a token", "same likeliest, %"):
        table.add_column(title, justify="right")
    for one in found.prompts[:_SHOWN]:
        table.add_row(one.prompt, str(one.tokens), f"{one.kl:.5f}", f"{100 * one.same_top:.1f}")
    return table


def draw(found: Divergence, file: Path) -> None:
    """Draw a bar for each prompt, the furthest apart on top."""
    from matplotlib.figure import Figure

    prompts = found.prompts[::-1]
    figure = Figure(figsize=(11, 1.8 + 0.3 * len(prompts)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(prompts)), [one.kl for one in prompts], color="#4477aa")
    axes.set_yticks(range(len(prompts)), [f"{one.prompt[:60]} ({100 * one.same_top:.0f} %)" for one in prompts])
    axes.axvline(found.kl, color="black", linewidth=0.8, label=f"mean {found.kl:.4f}")
    axes.set_xlabel("KL(A || B), nats a token; in brackets the same likeliest token")
    axes.set_title(f"A: {found.first}\nB: {found.second}", fontsize=9, loc="left")
    axes.legend(loc="lower right")
    figure.savefig(file, dpi=120)
