// The exact GELU, by itself and as the last step of a product.
#pragma once

#include "simd.h"

// erf(x) within 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
static inline Vec erf(Vec x) {
    Vec far = abs(x), t = Vec::all(1.0f) / fma(Vec::all(0.3275911f), far, Vec::all(1.0f));
    Vec y = Vec::all(1.061405429f);
    y = fma(y, t, Vec::all(-1.453152027f));
    y = fma(y, t, Vec::all(1.421413741f));
    y = fma(y, t, Vec::all(-0.284496736f));
    y = fma(y, t, Vec::all(0.254829592f));
    Vec rest = exp2(far * far * Vec::all(-LOG2_E));
    return with_sign(Vec::all(1.0f) - y * t * rest, x);
}

// x (1 + erf(x / sqrt 2)) / 2
static inline Vec gelu(Vec x) {
    Vec half = x * Vec::all(0.5f);
    return fma(half, erf(half * Vec::all(1.41421356237f)), half);
}

// GELU of what a product without it would have stored: the same bits as one after the other.
template <typename T>
static inline Vec gelu_of_stored(Vec x) {
    alignas(64) T stored[Vec::width];
    x.store(stored);
    return gelu(Vec::load(stored));
}
