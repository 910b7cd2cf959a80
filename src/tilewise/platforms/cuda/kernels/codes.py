"""Numbers of 8 bits, rounded half to even and read back: parts of other kernels.

E4M3 is made of float32 by its bits, and not by the conversion that cards have since Ada, so that older ones keep such
numbers too, and all of them the same. Beside what a kernel waits for memory, the few operations on integers are free.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def int8_of(numbers):
    """float32 -> int8. What is beyond [-128, 127], up to 2^22, gives the low 8 bits of the whole number.

    At 1.5 * 2^23 neighbours of float32 are 1 apart, so that an addition rounds, and the sum's low bits are the result
    in two's complement. Numbers come clamped, which also keeps the addition from becoming part of a multiplication.
    """
    return (numbers + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def e4m3_of(numbers):
    """float32 within [-448, 448] -> uint8, the bits of float8_e4m3fn.

    A mantissa of 23 bits becomes one of 3: half of the last place that stays is added, less its least part where that
    place is even; a carry raises the exponent by itself, whose bias falls from 127 to 7. Below 2^-6, neighbours are
    2^-9 apart, as those of float32 are at 2^14, where an addition rounds.
    """
    bits = numbers.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) & 0xFF
    code = tl.where(size < 0x3C800000, small, normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def e4m3_numbers(codes):
    """uint8, the bits of float8_e4m3fn -> float32.

    Exponent and mantissa move to their places in float32, and a power of two makes up for its larger bias, also of
    numbers below 2^-6. (Codes of NaN become 480.)
    """
    bits = codes.to(tl.int32)
    return (((bits & 0x80) << 24) | ((bits & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
