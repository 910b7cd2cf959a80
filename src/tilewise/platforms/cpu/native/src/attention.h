// Parts that all ways of attention share: a piece of work is some query rows over some keys.
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
static constexpr int64_t AHEAD = 8;   // keys that are on their way while others are used
static constexpr float NOTHING = -std::numeric_limits<float>::infinity();
static constexpr float LEAST = std::numeric_limits<float>::lowest();

// Numbers of queries, and of results, of a piece of work: with keys and scores they fill half of a usual L2 cache.
static constexpr int64_t PIECE = 4 * ROWS * 64;

static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Numbers from one block, token and head to the next.
struct Steps {
    int64_t block, token, head;
};

// Keys and values of a sequence, or of a tile.
template <typename Cache>
struct Past {
    const Cache* key;
    const Cache* value;
    const int64_t* blocks;
    int64_t queries, keys;
    const float *key_scales, *value_scales;  // [blocks, tokens of a block, heads], where numbers have 8 bits
};

// Rows of T over keys and values of Cache, which is T or has 8 bits.
template <typename T, typename Cache>
struct Sequence : Past<Cache> {
    const T* query;
    T* out;
};

// Whether numbers of a cache have scales.
template <typename Cache>
static constexpr bool HAS_SCALES = sizeof(Cache) == 1;

// The sizes and strides that all sequences of a call have in common.
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

// Results of a piece, by row: values mixed by weights, the largest exponent of two, and the sum of the weights.
struct Results {
    float *mixed, *most, *sum;
};

// A thread's own memory, where keys and values are packed as float32.
struct Scratch : Results {
    float *query, *key, *value, *scores;

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

static constexpr int64_t SIXTEEN = 16;
static constexpr int64_t PAIR_KEYS = 256;  // keys of a block: with more of them, scores leave the L1 cache
static constexpr int64_t STRIP = 32;  // rows whose scores are there at a time
// Numbers from a row of scores, or of weights, to the next: rows a power of two apart would meet in the cache.
static constexpr int64_t SCORES = PAIR_KEYS + 16, WEIGHTS = PAIR_KEYS + 32;

// Scratch memory where keys and values are packed as pairs of bfloat16. Rows are more, as packing is more of the work.
struct PairScratch : Results {
    float* scores;
    bfloat16 *query, *key, *value, *weights, *unpacked;

    // Numbers of a row of queries or of a key, in whole tiles.
    static int64_t width(int64_t width) { return up(width, 32); }
    static int64_t rows(int64_t padded) { return std::max(ROWS, 11 * PIECE / (4 * padded) / ROWS * ROWS); }
    static int64_t numbers(int64_t width) {
        const int64_t padded = up(width, PANEL), most = rows(padded), keys = PairScratch::width(width);
        const int64_t halves = (most + SIXTEEN) * keys + PAIR_KEYS * (keys + padded) + STRIP * WEIGHTS;
        return most * padded + STRIP * SCORES + halves / 2 + 2 * most;
    }
    PairScratch(float* from, const Shape& shape) {
        auto take = [&](int64_t count) { return std::exchange(from, from + count); };
        auto take_halves = [&](int64_t count) { return (bfloat16*)take(count / 2); };
        const int64_t padded = shape.padded(), most_rows = rows(padded), keys = width(shape.width);
        scores = take(STRIP * SCORES);
        weights = take_halves(STRIP * WEIGHTS);
        key = take_halves(PAIR_KEYS * keys);
        value = take_halves(PAIR_KEYS * padded);
        query = take_halves(most_rows * keys);
        unpacked = take_halves(SIXTEEN * keys);
        mixed = take(most_rows * padded);
        most = take(most_rows);
        sum = take(most_rows);
    }
};

template <typename T>
static void prefetch(const T* row, int64_t width) {
    for (int64_t d = 0; d < width; d += 64 / int64_t(sizeof(T))) _mm_prefetch((const char*)(row + d), _MM_HINT_T0);
}

// Places of `wanted` keys of a head, from `first` on, of their values, and of AHEAD more; in place of keys from `end`
// on stands the last one before. Rows are far apart, often each on a page of its own.
template <typename Cache>
struct Places {
    const Cache *keys[KEYS + AHEAD], *values[KEYS + AHEAD];
    float key_scales[KEYS + AHEAD], value_scales[KEYS + AHEAD];  // of numbers as they are loaded, where there are any

    Places(const Shape& shape, const Past<Cache>& sequence, int64_t head, int64_t first, int64_t wanted, int64_t end) {
        const int64_t* block = sequence.blocks + first / shape.block_tokens;
        int64_t place = first % shape.block_tokens, count = std::min(wanted + AHEAD, end - first);
        for (int64_t j = 0; j < count; place = 0, ++block) {
            const Cache* key = sequence.key + *block * shape.key.block + place * shape.key.token + head * shape.key.head;
            const Cache* value =
                sequence.value + *block * shape.value.block + place * shape.value.token + head * shape.value.head;
            int64_t scale = (*block * shape.block_tokens + place) * shape.kv_heads + head;
            for (int64_t last = std::min(count, j + shape.block_tokens - place); j < last; ++j) {
                keys[j] = key;
                values[j] = value;
                if constexpr (HAS_SCALES<Cache>) {
                    key_scales[j] = UNIT<Cache> * sequence.key_scales[scale];
                    value_scales[j] = UNIT<Cache> * sequence.value_scales[scale];
                    scale += shape.kv_heads;
                }
                key += shape.key.token;
                value += shape.value.token;
            }
        }
        std::fill(keys + count, keys + wanted + AHEAD, keys[count - 1]);
        std::fill(values + count, values + wanted + AHEAD, values[count - 1]);
        if constexpr (HAS_SCALES<Cache>) {
            std::fill(key_scales + count, key_scales + wanted + AHEAD, key_scales[count - 1]);
            std::fill(value_scales + count, value_scales + wanted + AHEAD, value_scales[count - 1]);
        }
    }

    void fetch_next(int64_t j, int64_t width) const {
        prefetch(keys[j + AHEAD], width);
        prefetch(values[j + AHEAD], width);
    }
};

// Keys of [first, first + count) that a row of a piece sees, counted from `first`.
static inline std::pair<int64_t, int64_t> visible(const Shape& shape, const Piece& piece, int64_t row, int64_t before,
                                                  int64_t first, int64_t count) {
    int64_t position = before + (piece.row + row) / shape.group();
    int64_t to = shape.causal ? std::clamp<int64_t>(position + 1 - first, 0, count) : count;
    return {shape.window ? std::clamp<int64_t>(position + 1 - shape.window - first, 0, to) : 0, to};
}

// Calls work(height, row) over all rows, in strips of up to HEIGHT that are as equal as can be.
template <int HEIGHT, typename Work>
static void by_strips(int64_t rows, Work work) {
    static_assert(HEIGHT <= 8);
    int64_t strips = (rows + HEIGHT - 1) / HEIGHT;
    for (int64_t strip = 0; strip < strips; ++strip) {
        int64_t row = rows * strip / strips;
        switch (rows * (strip + 1) / strips - row) {
            case 1: work(std::integral_constant<int, 1>{}, row); break;
            case 2: work(std::integral_constant<int, 2>{}, row); break;
            case 3: work(std::integral_constant<int, 3>{}, row); break;
            case 4: work(std::integral_constant<int, 4>{}, row); break;
            case 5: work(std::integral_constant<int, std::min(HEIGHT, 5)>{}, row); break;
            case 6: work(std::integral_constant<int, std::min(HEIGHT, 6)>{}, row); break;
            case 7: work(std::integral_constant<int, std::min(HEIGHT, 7)>{}, row); break;
            default: work(std::integral_constant<int, HEIGHT>{}, row);
        }
    }
}
