"""An original checkpoint's modules under its names, as the class that msmodelslim has transformers load.

Published checkpoints carry such a file of their own; twins have none. Tower: biases on q, k and v, layer norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


class InternVisionConfig(PretrainedConfig):
    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(
        self, llm_config: dict[str, Any] | None = None, vision_config: dict[str, Any] | None = None, **rest: Any
    ) -> None:
        decoder = dict(llm_config or {"model_type": "qwen3"})
        self.llm_config = CONFIG_MAPPING[decoder.pop("model_type")](**decoder)
        self.vision_config = InternVisionConfig(**(vision_config or {}))
        self.num_experts = getattr(self.llm_config, "num_experts", 0)
        super().__init__(**rest)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        tiles, length, width = hidden.shape
        parts = self.qkv(hidden).view(tiles, length, 3, self.heads, width // self.heads)
        mixed = functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        return self.proj(mixed.transpose(1, 2).reshape(tiles, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden)))


class Layer(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1, self.norm2 = (nn.LayerNorm(width, config.layer_norm_eps) for _ in range(2))
        self.ls1, self.ls2 = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.attn = Attention(width, config.num_attention_heads)
        self.mlp = Mlp(width, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        return hidden + self.mlp(self.norm2(hidden)) * self.ls2


class Embeddings(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding


class InternVisionModel(nn.Module):
    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), nn.Module()
        self.encoder.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, pixels: Tensor, output_hidden_states: bool = False, return_dict: bool = True) -> BaseModelOutput:
        hidden = self.embeddings(pixels)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class InternVLChatModel(PreTrainedModel):
    config_class = InternVLChatConfig

    def __init__(self, config: InternVLChatConfig) -> None:
        super().__init__(config)
        width, outputs = config.vision_config.hidden_size, config.llm_config.hidden_size
        self.downsample_ratio = config.downsample_ratio
        self.vision_model = InternVisionModel(config.vision_config)
        self.language_model = AutoModelForCausalLM.from_config(config.llm_config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * width), nn.Linear(4 * width, outputs), nn.GELU(), nn.Linear(outputs, outputs)
        )
        self.post_init()

    def pixel_shuffle(self, grid: Tensor, scale_factor: float) -> Tensor:
        """Return [tiles, high / 2, wide / 2, 4 * width]; only calibration goes by the order of the four."""
        tiles, high, wide, width = grid.shape
        squares = grid.view(tiles, high // 2, 2, wide // 2, 2, width)
        return squares.permute(0, 1, 3, 2, 4, 5).reshape(tiles, high // 2, wide // 2, 4 * width)
