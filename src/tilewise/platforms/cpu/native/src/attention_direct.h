// Few rows over their keys, as of a decoded token: keys and values are read where they are, as few rows take less time
// than packing would. A strip of up to eight rows are the lanes of its scores, [keys][LANES].
#pragma once

#include "attention.h"

static constexpr int LANES = 8;
static constexpr int64_t DIRECT_KEYS = 64;  // keys of a block, so that it stays in the L1 cache

// One key's scores, of M rows.
template <int M, typename T>
static inline void score_key(const float* query, const T* key, int64_t width, float* scores) {
    Vec sums[LANES];
#pragma GCC unroll 8
    for (int m = 0; m < LANES; ++m) sums[m] = Vec::zero();
    over(0, width, [&](int64_t d, auto lanes) {
        Vec some = lanes.load(key + d);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) sums[m] = fma(some, lanes.load(query + m * width + d), sums[m]);
    });
    _mm256_storeu_ps(scores, sums_of(sums));
}

// Multiplies the lanes of each key by its scale, or by that of its value.
static inline void scale_lanes(float* lanes, const float* scales, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
        float* own = lanes + j * LANES;
        _mm256_storeu_ps(own, _mm256_mul_ps(_mm256_loadu_ps(own), _mm256_set1_ps(scales[j])));
    }
}

// Scores become weights, by each row's maximum so far; what its sums are to be multiplied by.
static inline Vec weigh_lanes(float* scores, int64_t count, Vec& most, Vec& sum) {
    int64_t numbers = count * LANES;
    Vec now = most, total = Vec::zero();
    FOR_VECTORS(i, numbers) now = max(now, Vec::load(scores + i));
    now = max_of_eights(now);
    Vec shift = max(now, Vec::all(LEAST));  // a row that has seen nothing yet gets weights of zero, not of NaN
    FOR_VECTORS(i, numbers) {
        Vec weight = exp2(Vec::load(scores + i) - shift);
        weight.store(scores + i);
        total = total + weight;
    }
    Vec before = exp2(most - shift);
    sum = fma(sum, before, sum_of_eights(total));
    most = now;
    return before;
}

// Some columns of M rows: mixed = mixed * before + weights * values.
template <int M, int COLUMNS, typename T, typename Lanes>
static void add_columns(const float* weights, const float* before, const T* const* values, int64_t count, int64_t d,
                        int64_t padded, float* mixed, Lanes lanes) {
    Vec sums[M][COLUMNS];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) {
            sums[m][c] = Vec::load(mixed + m * padded + d + c * Vec::width) * Vec::all(before[m]);
        }
    }
    for (int64_t j = 0; j < count; ++j) {
        Vec some[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) some[c] = lanes.load(values[j] + d + c * Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Vec weight = Vec::all(weights[j * LANES + m]);
#pragma GCC unroll 4
            for (int c = 0; c < COLUMNS; ++c) sums[m][c] = fma(weight, some[c], sums[m][c]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; ++c) sums[m][c].store(mixed + m * padded + d + c * Vec::width);
    }
}

// All columns of the rows of a strip.
template <typename T>
static void add_direct(const float* weights, const float* before, const T* const* values, int64_t count, int64_t rows,
                       int64_t width, int64_t padded, float* mixed) {
    by_strips<4>(rows, [&](auto height, int64_t row) {
        constexpr int COLUMNS = height <= 2 ? 4 : 2;  // enough sums at a time for the latency of a product
        const float *own = weights + row, *factors = before + row;
        float* to = mixed + row * padded;
        int64_t d = 0;
        for (; d + COLUMNS * Vec::width <= width; d += COLUMNS * Vec::width) {
            add_columns<height, COLUMNS>(own, factors, values, count, d, padded, to, AllLanes{});
        }
        over(d, width, [&](int64_t rest, auto lanes) {
            add_columns<height, 1>(own, factors, values, count, rest, padded, to, lanes);
        });
    });
}

// Rows [row, row + M) of a piece over all of its keys.
template <int M, typename Cache>
static void run_strip(const Shape& shape, const Past<Cache>& sequence, const Piece& piece, int64_t row,
                      const Scratch& scratch) {
    int64_t width = shape.width, padded = shape.padded();
    int64_t past = sequence.keys - sequence.queries;  // tokens before the first query, if causal
    Vec most = Vec::all(NOTHING), sum = Vec::zero();
    for (int64_t first = piece.first; first < piece.last; first += DIRECT_KEYS) {
        int64_t count = std::min(DIRECT_KEYS, piece.last - first), whole = up(count, Vec::width / LANES);
        Places<Cache> places(shape, sequence, piece.head, first, whole, piece.last);
        for (int64_t j = 0; j < whole; ++j) {
            places.fetch_next(j, width);
            score_key<M>(scratch.query + row * width, places.keys[j], width, scratch.scores + j * LANES);
        }
        if constexpr (HAS_SCALES<Cache>) scale_lanes(scratch.scores, places.key_scales, whole);
        for (int m = 0; m < M; ++m) {
            auto [from, to] = visible(shape, piece, row + m, past, first, count);
            for (int64_t j = 0; j < from; ++j) scratch.scores[j * LANES + m] = NOTHING;
            for (int64_t j = to; j < whole; ++j) scratch.scores[j * LANES + m] = NOTHING;
        }
        alignas(64) float before[Vec::width];
        weigh_lanes(scratch.scores, count, most, sum).store(before);
        if constexpr (HAS_SCALES<Cache>) scale_lanes(scratch.scores, places.value_scales, count);
        add_direct(scratch.scores, before, places.values, count, M, width, padded, scratch.mixed + row * padded);
    }
    store_some(scratch.most + row, most, M);
    store_some(scratch.sum + row, sum, M);
}

template <typename Cache>
static void run_direct(const Shape& shape, const Past<Cache>& sequence, const Piece& piece, const Scratch& scratch) {
    by_strips<LANES>(piece.rows, [&](auto height, int64_t row) {
        run_strip<height>(shape, sequence, piece, row, scratch);
    });
}
