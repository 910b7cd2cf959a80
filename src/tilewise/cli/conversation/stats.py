"""What answers took, in words."""

from __future__ import annotations

from collections.abc import Sequence

from tilewise.cli.conversation.session import Answer


def stats_lines(answers: Sequence[Answer]) -> list[str]:
    """Of the last answer, and of all if there are several."""
    if not answers:
        return ["There is no answer yet."]
    lines = [f"last answer: {_counts(answers[-1:])}; {_times(answers[-1])}"]
    if len(answers) > 1:
        seconds = sum(answer.ended - answer.began for answer in answers)
        lines.append(f"{len(answers)} answers: {_counts(answers)}; {seconds:.2f} s in all")
    return lines


def _counts(answers: Sequence[Answer]) -> str:
    usages = [answer.usage for answer in answers if answer.usage is not None]
    if not usages:
        return "the server counted nothing"
    details = [usage.get("prompt_tokens_details") or {} for usage in usages]
    # Servers leave out what they do not count.
    more = [
        f"{name} {sum(detail.get(key) or 0 for detail in details)}"
        for key, name in (("cached_tokens", "cached"), ("tiles", "tiles"))
        if any(detail.get(key) is not None for detail in details)
    ]
    prompt = sum(usage.get("prompt_tokens") or 0 for usage in usages)
    generated = sum(usage.get("completion_tokens") or 0 for usage in usages)
    of_it = f" ({', '.join(more)})" if more else ""
    return f"{prompt} prompt tokens{of_it}, {generated} answer tokens"


def _times(answer: Answer) -> str:
    first = "" if answer.first is None else f"first token after {answer.first - answer.began:.2f} s, "
    ending = ", cut off at its longest" if answer.finish_reason == "length" else ""
    return f"{first}all after {answer.ended - answer.began:.2f} s{ending}"
