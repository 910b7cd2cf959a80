"""The noise of `tilewise.platforms.draw`, for kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _murmur32(bits):
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)


@triton.jit
def exponential_noise(first_key, second_key, place):
    """Return exponential noise, float32, for the tokens at int32 places, under both halves of a key.

    There is no log1p without libdevice: with y = 1 - u as it is rounded, log(y) * u / (1 - y) is log(1 - u) to a few
    last places (Kahan; Goldberg 1991, "What every computer scientist should know", theorem 4).
    """
    bits = _murmur32(place.to(tl.uint32) ^ first_key.to(tl.uint32, bitcast=True))
    bits = _murmur32(bits ^ second_key.to(tl.uint32, bitcast=True))
    uniform = ((bits & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    uniform = tl.minimum(uniform, 0.9999999403953552)  # 1 - 2^-24
    rest = 1 - uniform
    lost = tl.where(rest == 1, 1.0, 1 - rest)
    return tl.where(rest == 1, uniform, -tl.log(rest) * (uniform / lost))
