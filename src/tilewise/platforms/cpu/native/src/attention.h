// One piece of an attention's work: some query rows over some keys (attention.cpp cuts the work up).
#pragma once

#include "simd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

static constexpr int64_t ROWS = 96;   // query rows whose scores are there at a time
static constexpr int64_t KEYS = 128;  // keys of a block
static constexpr int64_t PANEL = 2 * Vec::width;
static constexpr int HEIGHT = 6;  // rows whose sums are in registers, times two vectors
static constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Numbers of queries, and of results, of a piece of work: with keys and scores they fill half of a usual L2 cache.
static constexpr int64_t PIECE = 4 * ROWS * 64;

static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Numbers from one block, token and head to the next.
struct Steps {
    int64_t block, token, head;
};

template <typename T>
struct Sequence {
    const T* query;
    T* out;
    const T* key;
    const T* value;
    const int64_t* blocks;
    int64_t queries, keys;
};

// What all sequences of a call have in common.
struct Shape {
    int64_t heads, kv_heads, width;
    Steps query, key, value;
    int64_t block_tokens;
    float scale;
    bool causal;
    int64_t window;      // tokens back that a query sees, itself included; 0 = all
    const float* sinks;  // a logit for each head, or null

    int64_t group() const { return heads / kv_heads; }
    int64_t padded() const { return up(width, PANEL); }
};

// A piece of work: rows of one key/value head, over keys [first, last).
struct Piece {
    int64_t sequence, head, row, rows, first, last;
    float* partial;  // where unfinished results go, or null
};

// A thread's own memory.
struct Scratch {
    float *query, *key, *value, *scores, *mixed, *most, *sum;

    static int64_t rows(int64_t padded) { return std::max(ROWS, PIECE / padded / ROWS * ROWS); }
    static int64_t numbers(int64_t width) {
        int64_t padded = up(width, PANEL), most = rows(padded);
        return 2 * most * padded + 2 * KEYS * padded + ROWS * KEYS + 2 * most;
    }
    Scratch(float* from, const Shape& shape) {
        auto take = [&](int64_t count) { return std::exchange(from, from + count); };
        int64_t padded = shape.padded(), most_rows = rows(padded);
        scores = take(ROWS * KEYS);
        value = take(KEYS * padded);
        key = take(KEYS * padded);
        mixed = take(most_rows * padded);
        query = take(most_rows * padded);
        most = take(most_rows);
        sum = take(most_rows);
    }
};

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

// Calls work(height, row) over all rows, in strips of up to HEIGHT that are as equal as can be.
template <typename Work>
static void by_strips(int64_t rows, Work work) {
    int64_t strips = (rows + HEIGHT - 1) / HEIGHT;
    for (int64_t strip = 0; strip < strips; ++strip) {
        int64_t row = rows * strip / strips;
        switch (rows * (strip + 1) / strips - row) {
            case 1: work(std::integral_constant<int, 1>{}, row); break;
            case 2: work(std::integral_constant<int, 2>{}, row); break;
            case 3: work(std::integral_constant<int, 3>{}, row); break;
            case 4: work(std::integral_constant<int, 4>{}, row); break;
            case 5: work(std::integral_constant<int, 5>{}, row); break;
            default: work(std::integral_constant<int, 6>{}, row);
        }
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

// Eight keys into eight columns of a panel [width][PANEL].
template <typename T>
static void transpose_keys(const T* const keys[8], int64_t width, float* panel) {
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        __m256 rows[8];
        for (int i = 0; i < 8; ++i) rows[i] = load8(keys[i] + d);
        transpose8(rows);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (d + i) * PANEL, rows[i]);
    }
    for (; d < width; ++d) {
        for (int i = 0; i < 8; ++i) panel[d * PANEL + i] = to_float(keys[i][d]);
    }
}

template <typename T>
static void prefetch(const T* row, int64_t width) {
    for (int64_t d = 0; d < width; d += 64 / int64_t(sizeof(T))) _mm_prefetch((const char*)(row + d), _MM_HINT_T0);
}

// A row of values into its place of each panel.
template <typename T>
static void spread_value(const T* value, int64_t width, int64_t padded, float* to) {
    FOR_VECTORS(d, padded) {
        Vec some = d < width ? load_at(value, d, width) : Vec::zero();
        some.store(to + d / PANEL * KEYS * PANEL + d % PANEL);
    }
}

// Keys [first, first + count) of a head as panels of PANEL keys, and their values as panels of PANEL columns. Rows are
// far apart, often each on a page of its own: the next ones are on their way while eight are packed.
template <typename T>
static void pack(const Shape& shape, const Sequence<T>& sequence, int64_t head, int64_t first, int64_t count,
                 const Scratch& scratch) {
    const T *keys[KEYS + 8], *values[KEYS + 8];
    int64_t whole = up(count, PANEL);
    for (int64_t j = 0; j < whole + 8; ++j) {
        // A panel is filled up with any key; its scores will be hidden.
        int64_t key = first + std::min(j, count - 1), place = key % shape.block_tokens;
        int64_t block = sequence.blocks[key / shape.block_tokens];
        keys[j] = sequence.key + block * shape.key.block + place * shape.key.token + head * shape.key.head;
        values[j] = sequence.value + block * shape.value.block + place * shape.value.token + head * shape.value.head;
    }
    for (int64_t j = 0; j < whole; j += 8) {
        for (int64_t i = j + 8; i < j + 16; ++i) {
            prefetch(keys[i], shape.width);
            prefetch(values[i], shape.width);
        }
        transpose_keys(keys + j, shape.width, scratch.key + j / PANEL * PANEL * shape.width + j % PANEL);
        for (int64_t i = j; i < std::min(j + 8, count); ++i) {
            spread_value(values[i], shape.width, shape.padded(), scratch.value + i * PANEL);
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
        by_strips(rows, [&](auto height, int64_t row) {
            multiply_keys<height>(scratch.query + (begin + row) * width, scratch.key + panel * width, width,
                                  scratch.scores + row * KEYS + panel);
        });
    }
    for (int64_t row = 0; row < rows; ++row) {
        int64_t own = begin + row, position = before + (piece.row + own) / shape.group();
        int64_t to = shape.causal ? std::clamp<int64_t>(position + 1 - first, 0, count) : count;
        int64_t from = shape.window ? std::clamp<int64_t>(position + 1 - shape.window - first, 0, to) : 0;
        weigh(scratch.scores + row * KEYS, count, from, to, scratch.mixed + own * padded, padded, scratch.most[own],
              scratch.sum[own]);
    }
    for (int64_t column = 0; column < padded; column += PANEL) {
        by_strips(rows, [&](auto height, int64_t row) {
            add_values<height>(scratch.scores + row * KEYS, scratch.value + column * KEYS, count, padded,
                               scratch.mixed + (begin + row) * padded + column);
        });
    }
}

// The rows of a piece over all of its keys: mixed, most and sum in the scratch.
template <typename T>
static void run(const Shape& shape, const Sequence<T>& sequence, const Piece& piece, const Scratch& scratch) {
    int64_t width = shape.width, padded = shape.padded(), group = shape.group();
    float factor = shape.scale * LOG2_E;
    for (int64_t r = 0; r < piece.rows; ++r) {
        int64_t query = (piece.row + r) / group, head = piece.head * group + (piece.row + r) % group;
        const T* from = sequence.query + query * shape.query.token + head * shape.query.head;
        float* to = scratch.query + r * width;
        FOR_VECTORS(d, width) store_at(to, d, width, load_at(from, d, width) * Vec::all(factor));
    }
    std::fill(scratch.mixed, scratch.mixed + piece.rows * padded, 0.0f);
    std::fill(scratch.most, scratch.most + piece.rows, NOTHING);
    std::fill(scratch.sum, scratch.sum + piece.rows, 0.0f);

    int64_t before = sequence.keys - sequence.queries;  // tokens before the first query, if causal
    for (int64_t first = piece.first; first < piece.last; first += KEYS) {
        int64_t count = std::min(KEYS, piece.last - first);
        pack(shape, sequence, piece.head, first, count, scratch);
        for (int64_t row = 0; row < piece.rows; row += ROWS) {
            over_block(shape, piece, row, std::min(ROWS, piece.rows - row), first, count, before, scratch);
        }
    }
}
