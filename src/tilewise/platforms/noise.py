"""Noise that is a pure function of (seed, position, token id): nobody's draw depends on who else draws.

Counter-based generation (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): no state is kept, a
number is the hash of its place. A request's key is SplitMix64 (Steele et al. 2014) of seed and position, on the
host; a token's number is MurmurHash3's 32-bit finaliser (Appleby, public domain) under both halves of that key, since
devices multiply 32 bits at full speed.
"""

from __future__ import annotations

from torch import Tensor

_MASK64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Two signed 32-bit halves of the key of a request's draw at a position; any whole number is a seed."""
    mixed = _splitmix64(_splitmix64(seed) + position * _GAMMA)
    return _signed32(mixed >> 32), _signed32(mixed)


def exponential_noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Exponential numbers, float32 [R, W] from 1e-10 to 17, for keys int32 [R, 2] and token ids int32 [W] or [R, W]."""
    bits = _murmur32(_murmur32(ids ^ keys[:, :1]).bitwise_xor_(keys[:, 1:]))
    uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31)
    # -log(1 - u), not -log(u): small numbers win races, so they are the ones that need all their digits.
    return uniform.clamp_(max=1 - 2**-24).neg_().log1p_().neg_()


def _splitmix64(value: int) -> int:
    value = (value + _GAMMA) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


_FIRST, _SECOND = _signed32(0x85EBCA6B), _signed32(0xC2B2AE35)


def _murmur32(bits: Tensor) -> Tensor:
    """In place. The masks make torch's arithmetic shift a logical one."""
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST)
    bits.bitwise_xor_((bits >> 13).bitwise_and_(0x7FFFF)).mul_(_SECOND)
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
