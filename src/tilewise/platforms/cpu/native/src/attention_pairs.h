// Many rows of bfloat16 over their keys, by dot products of pairs: queries, keys, weights and values are multiplied as
// bfloat16, and summed up in float32. Scores and their softmax are float32; weights are rounded before they are
// multiplied, as a model in bfloat16 has them.
//
// Keys and values are packed as matrices are (packed.h): in panels of 16 keys [width / 2][16][2], and of 16 columns
// [keys / 2][16][2].
#pragma once

#include "amx.h"
#include "attention.h"

#if defined(TILES) || defined(DOT_OF_PAIRS)
#define BY_PAIRS

// Two panels of 16 beside each other: c[rows][32] = a[rows][count] times b, or that much more.
#ifdef TILES
static void multiply_tiles(Tiles& tiles, const bfloat16* a, int64_t a_step, int64_t rows, const bfloat16* b,
                           int64_t panel, int64_t count, float* c, int64_t c_step, bool more) {
    static constexpr const bfloat16* type = nullptr;
    const int64_t a_bytes = a_step * sizeof(bfloat16), c_bytes = c_step * sizeof(float);
    const bool two = rows > TILE_ROWS;
    tiles.configure(two ? 2 : 1, 2, two ? rows - TILE_ROWS : rows);
    float* below = c + TILE_ROWS * c_step;
    if (more) {
        tile_load<0>(c, c_bytes);
        tile_load<1>(c + SIXTEEN, c_bytes);
        if (two) {
            tile_load<2>(below, c_bytes);
            tile_load<3>(below + SIXTEEN, c_bytes);
        }
    } else {
        tile_zero<0>();
        tile_zero<1>();
        if (two) {
            tile_zero<2>();
            tile_zero<3>();
        }
    }
    for (int64_t k = 0; k < count; k += LINE / 2, a += LINE / 2, b += LINE / 2 * SIXTEEN) {
        tile_load<ROW_TILE>(a, a_bytes);
        tile_load<WEIGHT_TILE>(b, LINE);
        tile_load<WEIGHT_TILE + 1>(b + panel, LINE);
        tile_multiply<0, ROW_TILE, WEIGHT_TILE>(type);
        tile_multiply<1, ROW_TILE, WEIGHT_TILE + 1>(type);
        if (two) {
            tile_load<ROW_TILE + 1>(a + TILE_ROWS * a_step, a_bytes);
            tile_multiply<2, ROW_TILE + 1, WEIGHT_TILE>(type);
            tile_multiply<3, ROW_TILE + 1, WEIGHT_TILE + 1>(type);
        }
    }
    tile_store<0>(c, c_bytes);
    tile_store<1>(c + SIXTEEN, c_bytes);
    if (two) {
        tile_store<2>(below, c_bytes);
        tile_store<3>(below + SIXTEEN, c_bytes);
    }
}
#endif

#ifdef DOT_OF_PAIRS
template <int M>
static void multiply_vectors(const bfloat16* a, int64_t a_step, const bfloat16* b, int64_t panel, int64_t count,
                             float* c, int64_t c_step, bool more) {
    __m512 sums[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0] = more ? _mm512_loadu_ps(c + m * c_step) : _mm512_setzero_ps();
        sums[m][1] = more ? _mm512_loadu_ps(c + m * c_step + SIXTEEN) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < count; k += 2, b += 2 * SIXTEEN) {
        const __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + panel);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            int32_t pair;
            std::memcpy(&pair, a + m * a_step + k, sizeof(pair));
            const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            sums[m][0] = _mm512_dpbf16_ps(sums[m][0], both, left);
            sums[m][1] = _mm512_dpbf16_ps(sums[m][1], both, right);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        _mm512_storeu_ps(c + m * c_step, sums[m][0]);
        _mm512_storeu_ps(c + m * c_step + SIXTEEN, sums[m][1]);
    }
}
#endif

// This thread's way to multiply pairs while it lives.
class PairProducts {
  public:
    static bool there() {
#ifdef DOT_OF_PAIRS
        return true;
#else
        return tiles_permitted();
#endif
    }

    void multiply(const bfloat16* a, int64_t a_step, int64_t rows, const bfloat16* b, int64_t panel, int64_t count,
                  float* c, int64_t c_step, bool more) {
#ifdef TILES
        if (tiles_permitted()) return multiply_tiles(tiles_, a, a_step, rows, b, panel, count, c, c_step, more);
#endif
#ifdef DOT_OF_PAIRS
        by_strips<8>(rows, [&](auto height, int64_t row) {
            multiply_vectors<height>(a + row * a_step, a_step, b, panel, count, c + row * c_step, c_step, more);
        });
#endif
    }

  private:
#ifdef TILES
    Tiles tiles_;
#endif
};

// A vector's worth of bfloat16 from column d on, zeros behind the row.
static inline __m512i load_pairs(const bfloat16* row, int64_t d, int64_t width) {
    const int64_t rest = width - d;
    if (rest >= 32) return _mm512_loadu_si512(row + d);
    return rest <= 0 ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16((uint32_t(1) << rest) - 1, row + d);
}

// Sixteen columns of two rows, in pairs.
static inline __m512i interleave(const bfloat16* first, const bfloat16* second, int64_t d, int64_t width) {
    const int64_t rest = width - d;
    const __mmask16 there = rest >= 16 ? 0xFFFF : rest <= 0 ? 0 : (1 << rest) - 1;
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, first + d));
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, second + d));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static inline void transpose16(Lanes rows[16]) {
    Lanes other[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        other[i] = (Lanes)_mm512_unpacklo_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
        other[i + 1] = (Lanes)_mm512_unpackhi_epi32((__m512i)rows[i], (__m512i)rows[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            rows[i + 2 * j] = (Lanes)_mm512_unpacklo_epi64((__m512i)other[i + j], (__m512i)other[i + 2 + j]);
            rows[i + 2 * j + 1] = (Lanes)_mm512_unpackhi_epi64((__m512i)other[i + j], (__m512i)other[i + 2 + j]);
        }
    }
    // Row i has column i % 4 of each quarter now, for rows 4 * (i / 4) on.
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            other[i + j] = (Lanes)_mm512_shuffle_i32x4((__m512i)rows[i + j], (__m512i)rows[i + 4 + j], 0x88);
            other[i + 4 + j] = (Lanes)_mm512_shuffle_i32x4((__m512i)rows[i + j], (__m512i)rows[i + 4 + j], 0xDD);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
        const int from = i % 4 + i / 4 * 4;
        rows[from] = (Lanes)_mm512_shuffle_i32x4((__m512i)other[i], (__m512i)other[i + 8], 0x88);
        rows[from + 8] = (Lanes)_mm512_shuffle_i32x4((__m512i)other[i], (__m512i)other[i + 8], 0xDD);
    }
}

// Finds sixteen keys or values as bfloat16: those of 8 bits are multiplied by their scales into `memory`.
template <typename Cache>
static void unpack(const Cache* const* from, const float* scales, int64_t width, bfloat16* memory,
                   const bfloat16* rows[SIXTEEN]) {
    for (int64_t i = 0; i < SIXTEEN; ++i) {
        if constexpr (HAS_SCALES<Cache>) {
            bfloat16* row = memory + i * PairScratch::width(width);
            const Vec scale = Vec::all(scales[i]);
            over(0, width, [&](int64_t d, auto lanes) { lanes.store(row + d, lanes.load(from[i] + d) * scale); });
            rows[i] = row;
        } else {
            rows[i] = from[i];
        }
    }
}

// Keys [first, first + count) of a head and their values in panels.
template <typename Cache>
static void pack_pairs(const Shape& shape, const Past<Cache>& sequence, int64_t head, int64_t first,
                       int64_t count, int64_t end, const PairScratch& scratch) {
    const int64_t width = shape.width, whole = up(count, 2 * SIXTEEN), keys = PairScratch::width(width);
    for (int64_t some = 0; some < whole; some += KEYS) {
        // Panels are filled up with any keys, whose scores will be hidden.
        const int64_t here = std::min(KEYS, whole - some);
        const Places<Cache> places(shape, sequence, head, first + some, here, end);
        for (int64_t j = 0; j < here; j += SIXTEEN) {
            for (int64_t i = j; i < j + SIXTEEN; ++i) places.fetch_next(i, width);
            const bfloat16* own[SIXTEEN];
            unpack(places.keys + j, places.key_scales + j, width, scratch.unpacked, own);
            bfloat16* key = scratch.key + (some + j) * keys;
            for (int64_t d = 0; d < keys; d += 32, key += 32 * SIXTEEN) {
                Lanes rows[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) rows[i] = (Lanes)load_pairs(own[i], d, width);
                transpose16(rows);
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) _mm512_storeu_si512(key + i * 32, (__m512i)rows[i]);
            }
            unpack(places.values + j, places.value_scales + j, width, scratch.unpacked, own);
            for (int64_t d = 0; d < shape.padded(); d += SIXTEEN) {
                bfloat16* value = scratch.value + d * PAIR_KEYS + (some + j) * SIXTEEN;
                for (int64_t i = 0; i < SIXTEEN; i += 2, value += 32) {
                    _mm512_storeu_si512(value, interleave(own[i], own[i + 1], d, width));
                }
            }
        }
    }
}

// 2^x, within 7.5e-5 of it, which is nothing beside the rounding of weights to bfloat16: a whole number below x, and a
// polynomial of the rest in [0, 1), fitted here with a relative error that is least at its worst. Zero for minus
// infinity; NaN stays NaN.
static inline Vec rough_exp2(Vec x) {
    const Vec rest = {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF)};
    Vec y = Vec::all(0.07802452f);
    y = fma(y, rest, Vec::all(0.22606716f));
    y = fma(y, rest, Vec::all(0.69583354f));
    y = fma(y, rest, Vec::all(0.99992522f));
    return scaled(y, x);
}

// Does what weigh() of attention_packed.h does, with weights in bfloat16. `factor` makes exponents of two of scores.
static void weigh_pairs(float* scores, bfloat16* weights, int64_t whole, int64_t from, int64_t to, float factor,
                        float* mixed, int64_t padded, float& most, float& sum) {
    std::fill(scores, scores + from, NOTHING);
    std::fill(scores + to, scores + whole, NOTHING);
    Vec highest[2] = {Vec::all(NOTHING), Vec::all(NOTHING)};
    for (int64_t j = 0; j < whole; j += 32) {
        highest[0] = max(highest[0], Vec::load(scores + j));
        highest[1] = max(highest[1], Vec::load(scores + j + 16));
    }
    const float now = std::max(most, max(highest[0], highest[1]).max() * factor);
    if (now == NOTHING) {  // nothing to be seen yet
        std::fill(weights, weights + whole, bfloat16{});
        return;
    }
    const Vec shift = Vec::all(-now), times = Vec::all(factor);
    Vec total[2] = {Vec::zero(), Vec::zero()};
    for (int64_t j = 0; j < whole; j += 32) {
        const Vec left = rough_exp2(fma(Vec::load(scores + j), times, shift));
        const Vec right = rough_exp2(fma(Vec::load(scores + j + 16), times, shift));
        left.store(weights + j);
        right.store(weights + j + 16);
        total[0] = total[0] + left;
        total[1] = total[1] + right;
    }
    if (now > most) {
        const float before = std::exp2(most - now);
        FOR_VECTORS(d, padded) (Vec::load(mixed + d) * Vec::all(before)).store(mixed + d);
        sum *= before;
        most = now;
    }
    sum += (total[0] + total[1]).sum();
}

// Rows [begin, begin + rows) of a piece over one block of keys.
static void over_pairs(PairProducts& products, const Shape& shape, const Piece& piece, int64_t begin, int64_t rows,
                       int64_t first, int64_t count, int64_t before, const PairScratch& scratch) {
    const int64_t padded = shape.padded(), whole = up(count, 2 * SIXTEEN), keys = PairScratch::width(shape.width);
    for (int64_t panel = 0; panel < whole; panel += 2 * SIXTEEN) {
        products.multiply(scratch.query + begin * keys, keys, rows, scratch.key + panel * keys, SIXTEEN * keys, keys,
                          scratch.scores + panel, SCORES, false);
    }
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t own = begin + row;
        auto [from, to] = visible(shape, piece, own, before, first, count);
        weigh_pairs(scratch.scores + row * SCORES, scratch.weights + row * WEIGHTS, whole, from, to,
                    shape.scale * LOG2_E, scratch.mixed + own * padded, padded, scratch.most[own], scratch.sum[own]);
    }
    for (int64_t column = 0; column < padded; column += 2 * SIXTEEN) {
        products.multiply(scratch.weights, WEIGHTS, rows, scratch.value + column * PAIR_KEYS, SIXTEEN * PAIR_KEYS,
                          whole, scratch.mixed + begin * padded + column, padded, true);
    }
}

// The rows of a piece over all of its keys, block by block.
template <typename Cache>
static void run_pairs(const Shape& shape, const Sequence<bfloat16, Cache>& sequence, const Piece& piece,
                      const PairScratch& scratch) {
    const int64_t width = shape.width, keys = PairScratch::width(width), group = shape.group();
    for (int64_t r = 0; r < piece.rows; ++r) {
        const int64_t query = (piece.row + r) / group, head = piece.head * group + (piece.row + r) % group;
        const bfloat16* from = sequence.query + query * shape.query.token + head * shape.query.head;
        for (int64_t d = 0; d < keys; d += 32) {
            _mm512_storeu_si512(scratch.query + r * keys + d, load_pairs(from, d, width));
        }
    }
    std::fill(scratch.mixed, scratch.mixed + piece.rows * shape.padded(), 0.0f);
    std::fill(scratch.most, scratch.most + piece.rows, NOTHING);
    std::fill(scratch.sum, scratch.sum + piece.rows, 0.0f);
    const int64_t before = sequence.keys - sequence.queries;  // tokens before the first query, if causal
    PairProducts products;
    for (int64_t first = piece.first; first < piece.last; first += PAIR_KEYS) {
        const int64_t count = std::min(PAIR_KEYS, piece.last - first);
        pack_pairs(shape, sequence, piece.head, first, count, piece.last, scratch);
        for (int64_t row = 0; row < piece.rows; row += STRIP) {
            over_pairs(products, shape, piece, row, std::min(STRIP, piece.rows - row), first, count, before, scratch);
        }
    }
}

#endif
