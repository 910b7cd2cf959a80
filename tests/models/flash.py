"""The reference of Flash models: the formulas of the released code over torch's own modules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.driving import normalised
from tests.tiny import TWINS, TinySpec, original_tensors, reference_model, write_hf, write_original
from tilewise.twin.specs import stand_ins

FLASH = sorted({first for name, first in stand_ins().items() if TWINS[name].flash})
"""Flash twins of different structure."""
NAME = "InternVL3_5-1B-Flash"
SPEC = TWINS[NAME]
FEW = SPEC.tokens_per_tile // 4
RELATIVE, ABSOLUTE = 0.1, 0.5
THRESHOLDS = ("flash_relative_threshold", "flash_absolute_threshold")
_PREFIXES = ("mlp2.", "gating.", "pooling_before_gating.")


def write_flash(folder: Path, **changes: Any) -> Path:
    """An original Flash checkpoint; `changes` are keys of its config.json, None = absent."""
    write_original(folder, SPEC)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


class FlashModules(nn.Module):
    """The modules that a Flash checkpoint adds, under its own names, all four pooling stages."""

    def __init__(self, vision: int, hidden: int) -> None:
        super().__init__()
        self.mlp2 = nn.Sequential(
            nn.LayerNorm(16 * vision),
            *(nn.Linear(16 * vision, 2 * hidden), nn.GELU(), nn.Dropout(0.1)),
            *(nn.Linear(2 * hidden, 2 * hidden), nn.GELU(), nn.Dropout(0.1)),
            nn.Linear(2 * hidden, hidden),
        )
        pooling: dict[str, nn.Module] = {}
        for number in range(1, 5):
            pooling[f"attn{number}"] = nn.MultiheadAttention(vision, 16, batch_first=True)
            pooling[f"norm{number}"] = nn.LayerNorm(vision)
        self.pooling_before_gating = nn.ModuleDict(pooling)
        self.pooling_before_gating.query_token = nn.Parameter(torch.empty(1, vision))
        gating: dict[str, nn.Module] = {f"block{number}": _gating_block(vision) for number in range(1, 5)}
        self.gating = nn.ModuleDict({**gating, "gate": nn.Sequential(nn.LayerNorm(vision), nn.Linear(vision, 2))})

    def scores(self, features: Tensor) -> Tensor:
        """Features of patches [T, patches, C] -> [T]; stages 1, 2, 2, 2."""
        stages = self.pooling_before_gating
        x = stages.query_token.expand(len(features), 1, -1)
        for number in (1, 2, 2, 2):
            x, _ = stages[f"attn{number}"](x, features, features)
            x = stages[f"norm{number}"](x)
        x = x.squeeze(1)
        for number in range(1, 5):
            x = x + self.gating[f"block{number}"](x)
        return self.gating["gate"](x).softmax(-1)[:, 0]

    def few_rows(self, features: Tensor) -> Tensor:
        """Each block of 4x4 patches as one row, channels patch by patch."""
        side = int(features.shape[1] ** 0.5)
        rows = []
        for top in range(0, side, 4):
            for left in range(0, side, 4):
                patches = [(top + y) * side + left + x for y in range(4) for x in range(4)]
                rows.append(features[:, patches].flatten(1))
        return self.mlp2(torch.stack(rows, 1))


def _gating_block(width: int) -> nn.Sequential:
    inner, outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(inner, nn.GELU(), nn.Dropout(0.1), outer, nn.Dropout(0.1), nn.LayerNorm(width))


class Reference:
    """transformers' model of the numbers of a Flash twin, with the router's modules around it: a request at a time."""

    def __init__(self, folder: Path, spec: TinySpec) -> None:
        self.spec = spec
        self.model = reference_model(write_hf(folder, spec))
        self.modules = FlashModules(spec.vision_hidden, spec.hidden).eval()
        self.modules.load_state_dict(
            {name: tensor for name, tensor in original_tensors(spec).items() if name.startswith(_PREFIXES)}
        )

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """uint8 tiles -> [T, patches, C]"""
        hidden: Tensor = self.model.model.vision_tower(normalised(pixels)).last_hidden_state
        return hidden[:, 1:]

    @torch.inference_mode()
    def rows(self, pixels: Tensor) -> list[Tensor]:
        """Rows of each tile of one request, few or all."""
        features = self.features(pixels)
        scores = self.modules.scores(features)
        easy = (scores > scores.quantile(RELATIVE)) & (scores >= ABSOLUTE)
        full = self.model.get_image_features(normalised(pixels), return_dict=True).pooler_output
        full = full.view(len(pixels), self.spec.tokens_per_tile, -1)
        few = self.modules.few_rows(features)
        return [few[n] if easy[n] else full[n] for n in range(len(pixels))]

    @torch.inference_mode()
    def generate(self, ids: Sequence[int], pixels: Tensor, count: int) -> tuple[list[int], Tensor, int]:
        """Greedy tokens, the logits each was chosen from, and the length of the shortened prompt."""
        rows = iter(self.rows(pixels))
        embeddings = self.model.get_input_embeddings()
        parts: list[Tensor] = []
        position = 0
        while position < len(ids):
            if ids[position] == self.spec.image_id:
                parts.append(next(rows))
                position += self.spec.tokens_per_tile
            else:
                parts.append(embeddings(torch.tensor([ids[position]])))
                position += 1
        x = torch.cat(parts)
        length, tokens, logits = len(x), [], []
        for _ in range(count):
            logits.append(self.model(inputs_embeds=x[None]).logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            x = torch.cat((x, embeddings(torch.tensor(tokens[-1:]))))
        return tokens, torch.stack(logits), length
