"""ModelInputs: the parts of a checkpoint that are read before an engine starts, and prepare its requests afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig
from tilewise.inputs.chat_tokenizer import ChatTokenizer
from tilewise.inputs.media.arrays import EmbeddingForm
from tilewise.inputs.media.cache import MediaCache
from tilewise.inputs.options import sampling_defaults
from tilewise.inputs.prepare import Preparer
from tilewise.inputs.spec import InputSpec
from tilewise.inputs.tokenizer import Tokenizer
from tilewise.plan import Resolved
from tilewise.resize import resizer
from tilewise.weights.checkpoint import Checkpoint
from tilewise.weights.folder import format_name, read_json


@dataclass(frozen=True)
class ModelInputs:
    """The small files of a model and of its draft, read; weights are where `checkpoint` says."""

    config: EngineConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    spec: InputSpec
    draft: Checkpoint | None
    embeddings: EmbeddingForm | None = None
    """Form of pictures that come encoded; None = they are not taken."""

    @classmethod
    def of(cls, config: EngineConfig) -> ModelInputs:
        """Read the files, or download them. Raises InvalidCheckpoint, InvalidConfig, UnknownModel or DownloadFailed."""
        checkpoint = Checkpoint.of(config)
        # Of a model that is no InternVL this is to be said, not what its tokenizer lacks.
        format_name(checkpoint.folder)
        tokenizer = Tokenizer.from_folder(checkpoint.tokenizer)
        spec = InputSpec.of(checkpoint.folder, tokenizer, config.mm_processor_kwargs)
        embeddings = EmbeddingForm.of(config, checkpoint.folder, spec.tokens_per_tile)
        return cls(config, checkpoint, tokenizer, spec, find_draft(config, tokenizer), embeddings)

    @property
    def chat_tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(self.tokenizer, self.spec, self.checkpoint.tokenizer)

    def default_sampling(self, source: str, override: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return sampling options of requests that do not say.

        `source` is auto (those of the checkpoint), vllm (none), or a folder. Raises InvalidConfig for a file that says
        nonsense.
        """
        if source == "vllm":
            return sampling_defaults({}, override)
        if source == "auto":
            return sampling_defaults(self.checkpoint.folder.optional("generation_config.json").values, override)
        return sampling_defaults(read_json(Path(source) / "generation_config.json"), override)

    def model_config(self, max_model_len: int) -> SimpleNamespace:
        """Return values that programs read of vLLM's ModelConfig; `hf_config` is the checkpoint's config.json."""
        config, tokenizer = self.config, self.config.tokenizer or self.config.model
        values = json.dumps(self.checkpoint.folder.config.values)
        hf_config = json.loads(values, object_hook=lambda found: SimpleNamespace(**found))
        names = {name: getattr(config, name) for name in ("model", "revision", "dtype", "seed", "trust_remote_code")}
        found = SimpleNamespace(**names, tokenizer=tokenizer, max_model_len=max_model_len, hf_config=hf_config)
        found.hf_text_config = getattr(hf_config, "llm_config", None) or getattr(hf_config, "text_config", hf_config)
        found.is_multimodal_model, found.runner_type = True, "generate"
        return found

    def preparer(self, resolved: Resolved) -> Preparer:
        """Return a maker of requests for an engine that has decided on its limits; its `cache` keeps cut pictures."""
        cache, resize = MediaCache.of(self.config.mm_processor_cache_gb), resizer(resolved.resize_kernels)
        return replace(self.plain_preparer(resolved.limits.max_model_len), cache=cache, resize=resize)

    def plain_preparer(self, max_model_len: int) -> Preparer:
        """Return a maker of requests where no engine runs: it keeps no pictures, and Pillow resizes them."""
        return Preparer(self.spec, self.tokenizer, max_model_len, self.config)


def find_draft(config: EngineConfig, tokenizer: Tokenizer) -> Checkpoint | None:
    """Return the draft model, None without one. Raises InvalidConfig if its tokens are not those of `tokenizer`."""
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
