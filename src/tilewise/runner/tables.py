"""Tables: what the device remembers of each slot between steps.

Sampled tokens are written here by the step that chose them, so that the next step can read them without the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tilewise.platforms.transfers import sent
from tilewise.step import Admission, BlockGrant, Limits


class Tables:
    """Written by the runner alone: admissions, grants and guesses of a plan, then the step's own tokens.

    Tokens are on the device, where steps choose them; blocks are the plans' to say, and stay on the host.
    """

    def __init__(self, limits: Limits, device: torch.device) -> None:
        slots = limits.max_num_seqs + 1
        blocks = -(-limits.max_model_len // limits.block_size)
        self.tokens = torch.zeros(slots, limits.max_model_len + 1, dtype=torch.int64, device=device)
        self.blocks = np.zeros((slots, blocks), np.int64)
        self.device = device
        self.rows: list[Admission | None] = [None] * slots

    def admit(self, admission: Admission) -> None:
        self.rows[admission.slot] = admission
        self.write(admission.slot, 0, admission.token_ids)

    def grant(self, grant: BlockGrant) -> None:
        stop = grant.first + len(grant.block_ids)
        self.blocks[grant.slot, grant.first : stop] = grant.block_ids

    def write(self, slot: int, start: int, token_ids: Sequence[int]) -> None:
        """Tokens of a slot from position `start` on."""
        self.tokens[slot, start : start + len(token_ids)] = sent(token_ids, self.device)

    def admission(self, slot: int) -> Admission:
        admission = self.rows[slot]
        assert admission is not None, f"slot {slot} works without an admission"
        return admission
