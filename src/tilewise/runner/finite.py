"""FiniteCheck: which sequences of a step have numbers that are NaN or infinite, and from which token on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.parallel.mesh import Mesh
from tilewise.platforms.transfers import PendingCopy, start_copy_to_host
from tilewise.step import Work
from tilewise.types import SampledToken

Sampled = Mapping[int, tuple[SampledToken, ...]]


def broken_rows(x: Tensor) -> Tensor:
    """Return for each of some rows [N, ...] whether it has a number that is NaN or infinite, bool [N]."""
    # One pass, where `isfinite` of all numbers takes several. A sum is finite if all of them are, below 1e33 or so.
    return ~x.flatten(1).sum(-1, dtype=torch.float32).isfinite()


@dataclass(frozen=True, slots=True)
class FiniteCheck:
    """The check of a step, on its way to the host."""

    work: Sequence[Work]
    arriving: PendingCopy
    """One flag for each token of the work, then one for each place at which a token is chosen, True = not finite."""

    @classmethod
    def begin(
        cls, work: Sequence[Work], hidden: Tensor, token_rows: Tensor, logits: Tensor | None, mesh: Mesh
    ) -> FiniteCheck:
        """Look at the last hidden states of the tokens, in rows `token_rows` [T] of `hidden`, and at logits [R, V].

        A number that is not finite stays so through all layers behind it, so that the last states show it. Logits are
        None in a stage of a pipeline that has no head; it is told what the last one has found.
        """
        rows = sum(item.num_choices for item in work)
        if logits is None:
            flags = torch.zeros(len(token_rows) + rows, dtype=torch.int64, device=hidden.device)
        else:
            flags = torch.cat((broken_rows(hidden)[token_rows], broken_rows(logits)))
        if mesh.pipeline is not None:
            flags = mesh.from_last_stage(flags.to(torch.int64))
        return cls(work, start_copy_to_host(flags))

    def wait(self, sampled: Sampled) -> tuple[dict[int, tuple[SampledToken, ...]], dict[int, str]]:
        """Return the tokens without those that were chosen from such numbers, and the slots of these, with the tensor.

        What a wrong guess has computed does not count, as nothing comes of it.
        """
        (arrived,) = self.arriving.wait()
        flags: list[bool] = arrived.bool().tolist()
        kept, found = dict(sampled), dict[int, str]()
        if not any(flags):
            return kept, found
        first, place = 0, sum(item.count for item in self.work)
        for item in self.work:
            tokens, rows = flags[first : first + item.count], flags[place : place + item.num_choices]
            first, place = first + item.count, place + item.num_choices
            tensor, good = _first_broken(item, tokens, rows)
            # `good` tokens were chosen before the first broken number. Were no more than these accepted, it lies behind
            # a wrong guess, and nothing of it is in the answer. Work that chooses no token, a part of a prompt, has
            # none accepted: there, every broken number counts.
            if tensor is None or good >= len(sampled.get(item.slot, ())) > 0:
                continue
            found[item.slot] = tensor
            if item.slot in kept:
                kept[item.slot] = kept[item.slot][:good]
        return kept, found


def _first_broken(item: Work, tokens: Sequence[bool], rows: Sequence[bool]) -> tuple[str | None, int]:
    """Return the tensor whose numbers are the first that are not finite, and how many tokens were chosen before."""
    if any(tokens[: item.count - item.drafts]):
        return "hidden states", 0
    for good, (token, row) in enumerate(zip(tokens[item.count - item.num_choices :], rows, strict=True)):
        if token or row:
            return ("hidden states" if token else "logits"), good
    return None, 0
