// Numbers as levels of int8: divided by a scale of which 127 make the largest of them, and rounded to the nearest, ties to
// even.
#pragma once

#include "simd.h"

struct Scaled {
    static constexpr float LEAST = 1e-30f;  // so that a row of zeros has a scale

    float scale, inverse;

    template <typename T>
    static Scaled of(const T* row, int64_t length) {
        Vec most = Vec::zero(), sum = Vec::zero();
        FOR_VECTORS(i, length) {
            Vec x = abs(load_at(row, i, length));
            most = max(most, x);
            sum = sum + x;
        }
        float largest = most.max(), all = sum.sum();
        if (largest < LEAST) largest = LEAST;
        if (all != all) largest = all;  // a NaN, which no maximum shows
        return {largest / 127.0f, 127.0f / largest};
    }
};

// Numbers rounded to levels of int8, with something added to each.
template <typename T, typename Row>
static inline void round_to(Row* to, const T* from, int64_t count, float inverse, float added) {
    over(0, count, [&](int64_t i, auto lanes) {
        const Vec level = round(lanes.load(from + i) * Vec::all(inverse));
        lanes.store(to + i, max(Vec::all(-127.0f), min(Vec::all(127.0f), level)) + Vec::all(added));
    });
}
