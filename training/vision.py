"""The vision tower of the demo model and the pixel shuffle behind it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from attention import attend


class VisionEmbeddings(nn.Module):
    """Patches, the class token and learned positions."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        patches = (config["image_size"] // patch) ** 2
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.randn(1, patches + 1, width) * 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(pixels.shape[0], -1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding


class VisionAttention(nn.Module):
    """Attention of every patch to every patch, with one fused projection for q, k and v."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, width = hidden.shape
        qkv = self.qkv(hidden).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, causal=False)
        return self.proj(mixed.transpose(1, 2).reshape(count, length, width))


class VisionMLP(nn.Module):
    """The feed-forward part of a vision block."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden)))


class VisionBlock(nn.Module):
    """Pre-norm attention and feed-forward, each scaled by a learned vector."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = VisionAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = VisionMLP(config)
        self.ls1 = nn.Parameter(config["initializer_factor"] * torch.ones(width))
        self.ls2 = nn.Parameter(config["initializer_factor"] * torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.ls1 * self.attn(self.norm1(hidden))
        return hidden + self.ls2 * self.mlp(self.norm2(hidden))


class VisionModel(nn.Module):
    """The vision tower: embeddings and blocks, without a final norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        blocks = [VisionBlock(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(blocks)})

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.embeddings(pixels)
        for block in self.encoder["layers"]:
            hidden = block(hidden)
        return hidden


def pixel_shuffle(hidden: Tensor) -> Tensor:
    """Join each two by two block of patches into one token (ps_version v2, factor 0.5)."""
    count, patches, width = hidden.shape
    side = int(patches**0.5)
    grid = hidden.view(count, side // 2, 2, side // 2, 2, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(count, patches // 4, 4 * width)
