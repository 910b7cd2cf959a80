"""The decoder of the demo model: a small Qwen3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from attention import attend


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden.float(), self.weight.shape, self.weight, self.epsilon)


def rotary_table(length: int, head_width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine per position for the half-rotation form of rotary positions."""
    rates = theta ** (-torch.arange(0, head_width, 2, device=device).float() / head_width)
    angles = torch.outer(torch.arange(length, device=device).float(), rates)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each head's two halves by the position's angles."""
    first, second = states.chunk(2, dim=-1)
    return states * table[0] + torch.cat([-second, first], dim=-1) * table[1]


class TextAttention(nn.Module):
    """Causal grouped-query attention with a norm on each query and key head (Qwen3)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.head_width = config["hidden_size"], config["head_dim"]
        queries, pairs = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(width, queries * self.head_width, bias=False)
        self.k_proj = nn.Linear(width, pairs * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, pairs * self.head_width, bias=False)
        self.o_proj = nn.Linear(queries * self.head_width, width, bias=False)
        self.q_norm = RMSNorm(self.head_width, config["rms_norm_eps"])
        self.k_norm = RMSNorm(self.head_width, config["rms_norm_eps"])
        self.repeats = queries // pairs

    def heads(self, projected: Tensor) -> Tensor:
        """(count, length, heads * width) to (count, heads, length, width)."""
        return projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def forward(self, hidden: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        value = self.heads(self.v_proj(hidden)).repeat_interleave(self.repeats, dim=1)
        query = rotate(self.q_norm(self.heads(self.q_proj(hidden))), table).to(value.dtype)
        key = rotate(self.k_norm(self.heads(self.k_proj(hidden))), table).to(value.dtype)
        key = key.repeat_interleave(self.repeats, dim=1)
        mixed = attend(query, key, value, causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class TextMLP(nn.Module):
    """The gated feed-forward part of a decoder layer."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class TextLayer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = TextAttention(config)
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = TextMLP(config)

    def forward(self, hidden: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), table)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class TextModel(nn.Module):
    """The decoder's token table, layers and final norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.head_width, self.theta = config["head_dim"], config["rope_theta"]

    def forward(self, hidden: Tensor) -> Tensor:
        table = rotary_table(hidden.shape[1], self.head_width, self.theta, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, table)
        return self.norm(hidden)


class LanguageModel(nn.Module):
    """The decoder with its output matrix."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.model = TextModel(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
