"""The demo model for training, written plainly.

Its state dict carries exactly the tensor names of the original InternVL format, so saving it is one
call, and it serves as an independent reference for the engine's own implementation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from decoder import LanguageModel
from vision import VisionModel, pixel_shuffle


class DemoModel(nn.Module):
    """Vision tower, projector and decoder of a small InternVL."""

    def __init__(self, config: dict[str, Any], image_token: int) -> None:
        super().__init__()
        self.image_token = image_token
        joined, width = 4 * config["vision_config"]["hidden_size"], config["llm_config"]["hidden_size"]
        self.vision_model = VisionModel(config["vision_config"])
        self.mlp1 = nn.Sequential(nn.LayerNorm(joined), nn.Linear(joined, width), nn.GELU(), nn.Linear(width, width))
        self.language_model = LanguageModel(config["llm_config"])
        self.apply(initialize)

    def forward(self, pixels: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the wanted positions (a mask like tokens); tiles fill the image tokens in order."""
        features = self.mlp1(pixel_shuffle(self.vision_model(pixels)[:, 1:]))
        hidden = self.language_model.model.embed_tokens(tokens)
        places = (tokens == self.image_token).unsqueeze(-1)
        hidden = hidden.masked_scatter(places, features.to(hidden.dtype))
        hidden = self.language_model.model(hidden)
        return self.language_model.lm_head(hidden[wanted])


def initialize(module: nn.Module) -> None:
    """Small normal weights and zero biases."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.6 * module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
