"""Writes docs/compatibility.md from the options, and from the tables of what became of vLLM's flags and variables.

`make compatibility` runs this; a test holds the page against it.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from tilewise.cli.flags.flag import Flag
from tilewise.cli.flags.settings import FOREIGN, flag_of, serve_flags
from tilewise.cli.flags.verb import GROUPS
from tilewise.environment import READ, VARIABLES
from tilewise.foreign.additional import ADDITIONAL
from tilewise.foreign.translate import REMARKS, ForeignOption

PAGE = Path(__file__).parent / "compatibility.md"
INTRODUCTION = """\
# What becomes of vLLM's command line

Written by `make compatibility`.

`tilewise serve` takes `vllm serve`'s flags, those of vLLM 0.10 to 0.33 and some older ones. What changes an answer
works or is refused by name. What does not is taken, and one line in the log says why. `tilewise bench`, `run-batch`,
`ask` and the other verbs read options of the engine in the same way, and so does Python: `LLM(...)` takes what vLLM's
does, under the same names.

{counts}

| form | examples |
|---|---|
| dashes and underscores | `--max-model-len 8192`, `--max_model_len=8192` |
| a beginning that no other flag has | `--served-model-na x` |
| switches | `--enable-prefix-caching`, `--no-enable-prefix-caching`, `--enable-prefix-caching false` |
| amounts | `16K` and `1M` of 1024, `16k` and `25.6k` of 1000 |
| objects | `'{"image": 4}'`, `image=4,video=1`, `--limit-mm-per-prompt.image 4` |
| lists in objects | `--compilation-config.cudagraph_capture_sizes+ 8,16` |
| short names | `-tp`, `-pp`, `-dp`, `-ep`, `-cc`, `-O2`, `-q` |
| a YAML file | `--config flags.yml`; the command line wins over the file, the file over the environment |

Of a flag that is given several times the last one counts. One that does not exist is refused with the nearest that
does. `tilewise serve --help=WORD` searches.
"""
DIFFERENCES = """\
## Differences seen by vLLM's own tests
Of its `tests/entrypoints`, pointed at a checkpoint with random weights:

| difference | why |
|---|---|
| `usage` has `prompt_tokens_details` with `image_tokens` and `tiles` | counted anyway; vLLM has a flag for it |
| `kv_transfer_params` is refused | keys and values are not sent between servers |
| `background` with `stream`, and `GET /v1/responses/ID?stream=true`, are refused | ask until it is not `queued` |
| `tool_calls` is `[]` where there are none | as older vLLM's answers; those of 0.33 leave it out |
| nothing is thought before a forced call or a form of answers | unless `enable_thinking` asks for it |
| `usage` has `completion_tokens_details` where something was thought | vLLM has it with a reasoning parser, of 0 too |
| `use_beam_search` is refused | beams are searched offline, by `LLM.beam_search` |
| pictures and videos on private hosts are refused | `--allowed-media-domains` names the hosts or networks that may |
| `image_url` may be a text, without `url` in an object | nothing else can be meant |
| sentences of errors are other ones | `error.type`, `code` and `param` are the same; `detail` is never a list |
| `run-batch` goes on behind a line that is wrong | the error is in the line's `response`, as in OpenAI's batches |
| marks in answers (`--watermark-config`), `--enable-prompt-embeds`, adapters, audio, scores are refused | not there |
| `thinking_token_budget` and MCP servers (`--tool-server`) are refused | `max_tokens` limits; tools are called by you |
| `/v2/embed`, `/v1/embeddings`, `/score`, `/rerank` answer 404, and lines of a batch `invalid_url` | no such models |
| `/version` is that of this program | so are `system_fingerprint` and the server's own header |
| the middleware and sessions of SageMaker's container are not there | put them in front |
| `/reset_prefix_cache?reset_running_requests=true` is refused | running requests keep their prefixes |
| every route but four asks for a key, where there are keys | vLLM guards `/v1`, `/v2`, `/inference`, `/cohere` |
"""
FATES = {
    "built in": "Built in\nIt is so anyway; one line in the log says so.",
    "other device": "For other devices\nTaken; nothing on this device depends on it, and one line in the log says so.",
    "other name": "By another name\nTaken as the option that it is here.",
    "not yet": "Not there yet\nRefused, unless the value asks for what is so anyway.",
    "never": "Not wanted\nRefused, unless the value asks for what is so anyway.",
}
VARIABLE_FATES = {
    "honoured": "does what it does in vLLM",
    "own": "is read by this program, or by those of a terminal",
    "told": "no effect; one line in the log says why",
    "other device": "no effect; nothing is said",
}


def page() -> str:
    return "\n".join(
        [
            INTRODUCTION.replace("{counts}", _counts()),
            *_options(),
            *_foreign(),
            _additional(),
            _variables(),
            DIFFERENCES,
        ]
    )


def _counts() -> str:
    """How many flags and variables have which fate."""
    flags = serve_flags()
    options = sum(flag.group != "compatibility" for flag in flags)
    fates = Counter(entry.fate for entry in FOREIGN if entry.name in {flag.name for flag in flags[options:]})
    refused = fates["not yet"] + fates["never"]
    effect = fates["built in"] + fates["other device"]
    text = (
        f"Of {len(flags)} flags {options} are options, {fates['other name']} are other names of options, {effect} have "
        f"no effect and are taken, and {refused} are refused unless they ask for what is so anyway. "
        f"Of {len(VARIABLES)} environment variables {len(READ)} are read, {len(VARIABLES) - len(READ)} do nothing."
    )
    return textwrap.fill(text, 120)


def _options() -> Iterator[str]:
    yield "## Options\n"
    flags = [flag for flag in serve_flags() if flag.group != "compatibility"]
    for group, members in groupby(sorted(flags, key=lambda flag: list(GROUPS).index(flag.group)), lambda f: f.group):
        rows = [(_names(flag), _values(flag), _default(flag.default), _meaning(flag)) for flag in members]
        yield section(f"### {group}: {GROUPS[group]}", ("flag", "values", "default", "what it is"), rows)


def _names(flag: Flag) -> str:
    other = f"--{flag.alias.replace('_', '-')}" if flag.alias else None
    return ", ".join(f"`{name}`" for name in (flag.dashed, other, flag.short) if name)


def _values(flag: Flag) -> str:
    if flag.is_switch:
        return "switch"
    if get_origin(flag.type) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(flag.type))
    return "list" if flag.is_list else "object" if flag.is_object else {int: "N", float: "X"}.get(flag.type, "text")


def _default(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(value) if isinstance(value, tuple) else _shown(value)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(flag: Flag) -> str:
    remark = REMARKS.get(flag.name)
    limits = [entry.says for entry in FOREIGN if entry.name == flag.name]
    return "; ".join(dict.fromkeys(text for text in (flag.help, *limits) if text and text != remark))


def _foreign() -> Iterator[str]:
    options = {flag.name for flag in serve_flags() if flag.group != "compatibility"}
    for fate, text in FATES.items():
        title, _, about = text.partition("\n")
        entries = [entry for entry in FOREIGN if entry.fate == fate and entry.name not in options]
        rows = [(_names(flag_of(entry)), _values(flag_of(entry)), _accepted(entry), entry.says) for entry in entries]
        yield section(f"## {title}\n{about}", ("flag", "values", "accepted", "why"), rows)


def _accepted(entry: ForeignOption) -> str:
    if entry.accepts is None:
        return "all"
    return ", ".join(map(_shown, entry.accepts)) or "none"


def _additional() -> str:
    rows = [(f"`{key}`", says) for key, says in ADDITIONAL.items()]
    return section(
        "## Keys of `--additional-config`\nOthers are named in a warning.", ("key", "what became of it"), rows
    )


def _variables() -> str:
    rows = [(f"`{entry.name}`", VARIABLE_FATES[entry.fate], entry.says) for entry in VARIABLES]
    about = "Others that begin with VLLM_ are named in a warning, or refused with `--fail-on-environ-validation`."
    return section(f"## Environment variables\n{about}", ("variable", "what becomes of it", "about"), rows)


def section(heading: str, titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    title, _, about = heading.partition("\n")
    lines = [title, "", *([about, ""] if about else []), row(titles), "|---" * len(titles) + "|"]
    return "\n".join([*lines, *map(row, rows), ""])


def row(cells: tuple[str, ...]) -> str:
    """Cells as Markdown shows them: < would begin HTML there, and | another cell."""
    escaped = (cell.replace("<", "&lt;").replace("|", "&#124;") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
