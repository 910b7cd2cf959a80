"""The checkpoint of a draft model, which has to spell as the model does."""

from __future__ import annotations

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.weights.checkpoint import Checkpoint


def find_draft(config: EngineConfig, tokenizer: Tokenizer) -> Checkpoint | None:
    """None where no model drafts. Raises InvalidConfig if its tokens are not those of `tokenizer`."""
    wanted = config.speculation
    if wanted is None or wanted.model is None:
        return None
    found = Checkpoint.find(wanted.model, wanted.revision, config)
    if not Tokenizer.from_folder(found.tokenizer).spells_as(tokenizer):
        raise InvalidConfig(
            f"speculative_config: {wanted.model} has other tokens than {config.model}, it cannot draft: take a smaller "
            "model of the same generation."
        )
    return found
