// Rows and packed weights that are floats: what `product` (packed.h) and `product_by_tiles` (tiles.h) multiply by.
//
// bfloat16 comes in pairs of inputs, [inputs / 2][PANEL][2], as tiles of AMX (tiles.h) and AVX-512's dot product of pairs
// read them. Without either, a shift and a mask make two vectors of float32 of a vector of pairs, at hardly a cost.
#pragma once

#include <type_traits>

#include "gelu.h"
#include "packed.h"

// Rows and results of T, weights of W.
template <typename T, typename W = T>
struct Floats {
#ifdef DOT_OF_PAIRS
    using Row = W;
#else
    using Row = float;
#endif
    using Weight = W;
    using Sum = float;
    using Register = Vec;
    static constexpr bool once = false;
    static constexpr int64_t group = sizeof(float) / sizeof(W);
    static constexpr int64_t taken = group == 1 ? 4 : 2;

    const T* x;
    int64_t m, inputs;
    const T* bias;
    T* out;
    int64_t outputs;
    bool activated;  // by GELU

    void fill(Row* to, int64_t row) const {
        const T* from = x + row * inputs;
        if constexpr (std::is_same_v<Row, T>) {
            std::memcpy(to, from, inputs * sizeof(T));
        } else {
            FOR_VECTORS(i, inputs) store_at(to, i, inputs, load_at(from, i, inputs));
        }
        std::fill(to + inputs, to + padded<Weight>(inputs), Row{});
    }

    void finish(const float* sums, int64_t row, int64_t output, int64_t count) const {
        count = std::min(count, outputs - output);
        T* to = out + row * outputs + output;
        FOR_VECTORS(i, count) {
            Vec y = load_at(sums, i, count);
            if (bias) y = y + load_at(bias + output, i, count);
            store_at(to, i, count, activated ? gelu_of_stored<T>(y) : y);
        }
    }

    // One input after the other; the weights stay in registers while the rows meet them.
    template <int ROWS, int PANELS, int VECTORS>
    static inline void step(Vec (&sums)[ROWS][VECTORS], const Row* rows, int64_t stride, const W* weights,
                            int64_t panel) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < taken; ++k) {
            Vec some[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) {
                some[v] = load(weights + v * PANELS / VECTORS * panel, v % (VECTORS / PANELS), k);
                asm("" : "+v"(some[v].v));  // GCC would rather keep the rows in registers, and runs out of them.
            }
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                Vec number = Vec::all(to_float(rows[r * stride + k]));
                asm("" : "+v"(number.v));
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(number, some[v], sums[r][v]);
            }
        }
    }

    // Vector v of a panel's weights for input k.
    static inline Vec load(const float* weights, int v, int64_t k) {
        return Vec::load(weights + k * PANEL + v * Vec::width);
    }
    static inline Vec load(const bfloat16* weights, int v, int64_t k) {
        const bfloat16* pairs = weights + (k / 2 * PANEL + v * Vec::width) * 2;
        return k % 2 ? odd(pairs) : even(pairs);
    }
};

#ifdef DOT_OF_PAIRS
template <>
template <int ROWS, int PANELS, int VECTORS>
inline void Floats<bfloat16>::step(Vec (&sums)[ROWS][VECTORS], const bfloat16* rows, int64_t stride,
                                   const bfloat16* weights, int64_t panel) {
    Lanes pairs[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
        pairs[p] = (Lanes)_mm512_loadu_si512(weights + p * panel);
        asm("" : "+v"(pairs[p]));  // as above: in registers, so that a row's pair is read once for all panels
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
        int32_t pair;
        std::memcpy(&pair, rows + r * stride, 4);
        __m512i number = _mm512_set1_epi32(pair);
        asm("" : "+v"(number));
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
            sums[r][p].v = _mm512_dpbf16_ps(sums[r][p].v, (__m512bh)number, (__m512bh)pairs[p]);
        }
    }
}
#endif
