// Many rows over their keys: blocks of keys are transposed and values copied first, which pays as all rows use them.
#pragma once

#include "attention.h"

static constexpr int HEIGHT = 6;  // rows whose sums are in registers, times two vectors

// scores[M][PANEL] = query[M][width] times a panel of keys [width][PANEL].
template <int M>
static void multiply_keys(const float* query, const float* panel, int64_t width, float* scores) {
    Vec sums[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = Vec::zero();
    for (int64_t d = 0; d < width; ++d) {
        Vec left = Vec::load(panel + d * PANEL), right = Vec::load(panel + d * PANEL + Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Vec factor = Vec::all(query[m * width + d]);
            sums[m][0] = fma(factor, left, sums[m][0]);
            sums[m][1] = fma(factor, right, sums[m][1]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0].store(scores + m * KEYS);
        sums[m][1].store(scores + m * KEYS + Vec::width);
    }
}

// mixed[M][PANEL of padded] += weights[M][keys] times a panel of values [keys][PANEL].
template <int M>
static void add_values(const float* weights, const float* panel, int64_t keys, int64_t padded, float* mixed) {
    Vec sums[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0] = Vec::load(mixed + m * padded);
        sums[m][1] = Vec::load(mixed + m * padded + Vec::width);
    }
    for (int64_t j = 0; j < keys; ++j) {
        Vec left = Vec::load(panel + j * PANEL), right = Vec::load(panel + j * PANEL + Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Vec factor = Vec::all(weights[m * KEYS + j]);
            sums[m][0] = fma(factor, left, sums[m][0]);
            sums[m][1] = fma(factor, right, sums[m][1]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0].store(mixed + m * padded);
        sums[m][1].store(mixed + m * padded + Vec::width);
    }
}

static inline void transpose8(__m256 rows[8]) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// Eight keys, times their scales if there are any, into eight columns of a panel [width][PANEL].
template <typename T>
static void transpose_keys(const T* const keys[8], const float* scales, int64_t width, float* panel) {
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        __m256 rows[8];
        for (int i = 0; i < 8; ++i) {
            rows[i] = load8(keys[i] + d);
            if constexpr (HAS_SCALES<T>) rows[i] = _mm256_mul_ps(rows[i], _mm256_set1_ps(scales[i]));
        }
        transpose8(rows);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (d + i) * PANEL, rows[i]);
    }
    for (; d < width; ++d) {
        for (int i = 0; i < 8; ++i) {
            panel[d * PANEL + i] = to_float(keys[i][d]);
            if constexpr (HAS_SCALES<T>) panel[d * PANEL + i] *= scales[i];
        }
    }
}

// A row of values, times its scale if there is one, into its place of each panel.
template <typename T>
static void spread_value(const T* value, float scale, int64_t width, int64_t padded, float* to) {
    FOR_VECTORS(d, padded) {
        Vec some = d < width ? load_at(value, d, width) : Vec::zero();
        if constexpr (HAS_SCALES<T>) some = some * Vec::all(scale);
        some.store(to + d / PANEL * KEYS * PANEL + d % PANEL);
    }
}

// Keys [first, first + count) of a head as panels of PANEL keys, and their values as panels of PANEL columns: a panel of
// keys is [width][PANEL], so that a vector has one number of several keys, and a panel of values [KEYS][PANEL], so that
// a vector has several numbers of one key.
template <typename Cache>
static void pack(const Shape& shape, const Past<Cache>& sequence, int64_t head, int64_t first, int64_t count,
                 int64_t end, const Scratch& scratch) {
    int64_t whole = up(count, PANEL);  // a panel is filled up with any keys; their scores will be hidden
    Places<Cache> places(shape, sequence, head, first, whole, end);
    for (int64_t j = 0; j < whole; j += 8) {
        for (int64_t i = j; i < j + 8; ++i) places.fetch_next(i, shape.width);
        transpose_keys(places.keys + j, places.key_scales + j, shape.width,
                       scratch.key + j / PANEL * PANEL * shape.width + j % PANEL);
        for (int64_t i = j; i < std::min(j + 8, count); ++i) {
            spread_value(places.values[i], places.value_scales[i], shape.width, shape.padded(),
                         scratch.value + i * PANEL);
        }
    }
}

// Scores of a row become weights; what was summed up before is scaled to the new maximum. Keys outside [from, to) are
// hidden. Exponents are of two: queries were multiplied by log2(e).
static void weigh(float* scores, int64_t count, int64_t from, int64_t to, float* mixed, int64_t padded, float& most,
                  float& sum) {
    int64_t whole = up(count, PANEL);
    std::fill(scores, scores + from, NOTHING);
    std::fill(scores + to, scores + whole, NOTHING);
    Vec highest = Vec::load(scores);
    FOR_VECTORS(j, whole) highest = max(highest, Vec::load(scores + j));
    float now = std::max(most, highest.max());
    if (now == NOTHING) {  // nothing to be seen yet
        std::fill(scores, scores + whole, 0.0f);
        return;
    }
    Vec total = Vec::zero(), shift = Vec::all(now);
    FOR_VECTORS(j, whole) {
        Vec weight = exp2(Vec::load(scores + j) - shift);
        weight.store(scores + j);
        total = total + weight;
    }
    if (now > most) {
        float before = std::exp2(most - now);
        FOR_VECTORS(d, padded) (Vec::load(mixed + d) * Vec::all(before)).store(mixed + d);
        sum *= before;
        most = now;
    }
    sum += total.sum();
}

// Rows [begin, begin + rows) of a piece over one block of keys.
static void over_block(const Shape& shape, const Piece& piece, int64_t begin, int64_t rows, int64_t first,
                       int64_t count, int64_t before, const Scratch& scratch) {
    int64_t width = shape.width, padded = shape.padded();
    for (int64_t panel = 0; panel < count; panel += PANEL) {
        by_strips<HEIGHT>(rows, [&](auto height, int64_t row) {
            multiply_keys<height>(scratch.query + (begin + row) * width, scratch.key + panel * width, width,
                                  scratch.scores + row * KEYS + panel);
        });
    }
    for (int64_t row = 0; row < rows; ++row) {
        int64_t own = begin + row;
        auto [from, to] = visible(shape, piece, own, before, first, count);
        weigh(scratch.scores + row * KEYS, count, from, to, scratch.mixed + own * padded, padded, scratch.most[own],
              scratch.sum[own]);
    }
    for (int64_t column = 0; column < padded; column += PANEL) {
        by_strips<HEIGHT>(rows, [&](auto height, int64_t row) {
            add_values<height>(scratch.scores + row * KEYS, scratch.value + column * KEYS, count, padded,
                               scratch.mixed + (begin + row) * padded + column);
        });
    }
}

// The rows of a piece over all of its keys, block by block.
template <typename Cache>
static void run_packed(const Shape& shape, const Past<Cache>& sequence, const Piece& piece, const Scratch& scratch) {
    std::fill(scratch.most, scratch.most + piece.rows, NOTHING);
    std::fill(scratch.sum, scratch.sum + piece.rows, 0.0f);
    int64_t before = sequence.keys - sequence.queries;  // tokens before the first query, if causal
    for (int64_t first = piece.first; first < piece.last; first += KEYS) {
        int64_t count = std::min(KEYS, piece.last - first);
        pack(shape, sequence, piece.head, first, count, piece.last, scratch);
        for (int64_t row = 0; row < piece.rows; row += ROWS) {
            over_block(shape, piece, row, std::min(ROWS, piece.rows - row), first, count, before, scratch);
        }
    }
}
