// Rows of bfloat16 with whole numbers of 4 bits, in sums of integers.
//
// A row is written, group by group, as two parts of int8: x = step * (first + second / 254), where 127 steps are the
// group's largest number. What that leaves away is less than 2^-16 of this largest number, of which bfloat16 itself keeps
// 2^-9. Sums of a part's products with codes are exact in int32, and four of them are one instruction, so that one row
// is as fast as its codes are read; as floats, codes would have to be looked up one by one.
#pragma once

#include "codes.h"
#include "levels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define SUMS_OF_PARTS
using IntLanes = __m512i;
#elif !defined(__AVX512F__)
#define SUMS_OF_PARTS
using IntLanes = __m256i;
#endif

#ifdef SUMS_OF_PARTS

static constexpr int PARTS_OF_X = 2, WORDS = 2;  // of a step's codes, four of an output side by side in each
static constexpr float FINER = 254;              // a step of the first part is so many of the second

struct PartedRows {
    const int32_t* numbers;  // [row][step][part][word], four inputs in each
    int64_t stride;
    const float* steps;      // [row][group]
    const float* sums;       // of each group's inputs, as they are in parts
    int64_t groups;
    int64_t first;
    int64_t count;
};

// The numbers of a group in parts; `to` gets the words of its steps, filled up with zeros.
static inline void part_group(const bfloat16* x, int64_t length, int32_t* to, float* step, float* sum) {
    static constexpr int64_t CHUNK = 256;
    // A word has the inputs of the low halves of its bytes, or those of the high halves, as codes lie in their lane.
    const __m128i order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const Scaled scaled = Scaled::of(x, length);
    Vec firsts = Vec::zero(), seconds = Vec::zero();
    for (int64_t from = 0; from < length; from += CHUNK) {
        const int64_t count = std::min(CHUNK, length - from);
        int8_t first[CHUNK], second[CHUNK];
        over(0, count, [&](int64_t i, auto lanes) {
            const Vec exact = lanes.load(x + from + i) * Vec::all(scaled.inverse);
            const Vec level = max(Vec::all(-127.0f), min(Vec::all(127.0f), round(exact)));
            const Vec rest = max(Vec::all(-127.0f), min(Vec::all(127.0f), round((exact - level) * Vec::all(FINER))));
            lanes.store(first + i, level);
            lanes.store(second + i, rest);
            firsts = firsts + level;
            seconds = seconds + rest;
        });
        const int64_t filled = parts(count, STEP) * STEP;
        std::fill(first + count, first + filled, int8_t{});
        std::fill(second + count, second + filled, int8_t{});
        for (int64_t i = 0; i < filled; i += STEP, to += PARTS_OF_X * WORDS) {
            const __m128i both = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)(first + i)),
                                                    _mm_loadl_epi64((const __m128i*)(second + i)));
            _mm_storeu_si128((__m128i*)to, _mm_shuffle_epi8(both, order));
        }
    }
    *step = scaled.scale;
    *sum = scaled.scale * (firsts.sum() + seconds.sum() / FINER);
}

static void part_row(const Codes& codes, const bfloat16* x, const int64_t* order, int32_t* to, float* steps, float* sums) {
    std::unique_ptr<bfloat16[], Freed> ordered;
    if (order) {
        ordered = scratch<bfloat16>(codes.inputs);
        for (int64_t k = 0; k < codes.inputs; ++k) ordered[k] = x[order[k]];
        x = ordered.get();
    }
    for (int64_t g = 0; g < codes.groups(); ++g) {
        const int64_t length = codes.length(g);
        part_group(x + g * codes.group, length, to, steps + g, sums + g);
        to += parts(length, STEP) * PARTS_OF_X * WORDS;
    }
}

#ifdef __AVX512F__
// Sums of products of bytes without a sign and bytes with one, four in each lane.
struct PartSums {
    static constexpr int width = 16;
    __m512i total = _mm512_setzero_si512();

    static IntLanes load(const uint8_t* step, int) { return _mm512_loadu_si512(step); }
    static IntLanes word(IntLanes line, int number) {
        return _mm512_and_si512(number ? _mm512_srli_epi32(line, 4) : line, _mm512_set1_epi32(0x0F0F0F0F));
    }
    inline void add(IntLanes codes, int32_t x) { total = _mm512_dpbusd_epi32(total, codes, _mm512_set1_epi32(x)); }
    inline void widen() {}
    Vec floats() const { return {_mm512_cvtepi32_ps(total)}; }
};
#else
// Pairs of products are summed up in int16, which holds those of WIDENED steps: 2 * 15 * 127 for each word.
struct PartSums {
    static constexpr int width = 8;
    __m256i pairs = _mm256_setzero_si256(), total = _mm256_setzero_si256();

    static IntLanes load(const uint8_t* step, int half) {
        return _mm256_loadu_si256((const __m256i*)(step + 32 * half));
    }
    static IntLanes word(IntLanes line, int number) {
        return _mm256_and_si256(number ? _mm256_srli_epi32(line, 4) : line, _mm256_set1_epi32(0x0F0F0F0F));
    }
    inline void add(IntLanes codes, int32_t x) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, _mm256_set1_epi32(x)));
    }
    inline void widen() {
        total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        pairs = _mm256_setzero_si256();
    }
    Vec floats() const { return {_mm256_cvtepi32_ps(total)}; }
};
#endif
static constexpr int64_t WIDENED = 4;  // steps

template <int ROWS, int PANELS>
static void multiply_parted(const Codes& codes, const uint8_t* panels, int64_t first, int64_t there,
                            const PartedRows& rows, const Results& results) {
    constexpr int HALVES = PANEL / PartSums::width, VECTORS = PANELS * HALVES;
    const auto offset = offsets<PANELS>(codes, there);
    const float middle = codes.code == INT4 ? 8.0f : 0.0f;
    alignas(64) float totals[ROWS][PANELS * PANEL] = {};
    const uint8_t* step = panels + codes.codes_at();
    const int32_t* x = rows.numbers;
    for (int64_t g = 0; g < codes.groups(); ++g) {
        PartSums sums[ROWS][PARTS_OF_X][VECTORS];
        for (int64_t k = 0, length = codes.length(g); k < length;) {
            for (const int64_t stop = std::min(length, k + WIDENED * STEP); k < stop; k += STEP) {
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) {
                    const IntLanes line = PartSums::load(step + offset[v / HALVES], v % HALVES);
                    if (v % HALVES == 0) _mm_prefetch(step + offset[v / HALVES] + NEAR, _MM_HINT_T0);
#pragma GCC unroll 2
                    for (int w = 0; w < WORDS; ++w) {
                        const IntLanes word = PartSums::word(line, w);
#pragma GCC unroll 4
                        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                            for (int part = 0; part < PARTS_OF_X; ++part) {
                                sums[r][part][v].add(word, x[r * rows.stride + part * WORDS + w]);
                            }
                    }
                }
                step += 64;
                x += PARTS_OF_X * WORDS;
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
                for (int part = 0; part < PARTS_OF_X; ++part)
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; ++v) sums[r][part][v].widen();
        }
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            const PanelScales own{codes, panels + offset[v / HALVES]};
            const int64_t output = v % HALVES * Vec::width;
            const Vec scale = own.scale(g, output);
            const Vec shift = codes.shifts == SHIFTS_NONE ? Vec::zero() : own.shift(g, output, scale);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const int64_t at = r * rows.groups + g;
                const Vec whole = fma(sums[r][1][v].floats(), Vec::all(1 / FINER), sums[r][0][v].floats());
                const Vec sum_of_x = Vec::all(rows.sums[at]);
                const Vec sum = whole * Vec::all(rows.steps[at]) - sum_of_x * Vec::all(middle);
                float* to = &totals[r][v * Vec::width];
                Vec total = fma(scale, sum, Vec::load(to));
                if (codes.shifts != SHIFTS_NONE) total = fma(shift, sum_of_x, total);
                total.store(to);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        results.finish(results.kind, totals[r], rows.first + r, first * PANEL, PANELS * PANEL);
    }
}

static constexpr int MOST_PARTED = Vec::width == 16 ? 2 : 1;  // rows at a time

// Four panels from `first` on, or as many as are there, with all rows.
static void multiply_parted_rows(const Codes& codes, const uint8_t* panels, int64_t first, int64_t count,
                                 const PartedRows& rows, const Results& results) {
    constexpr int ONE = Vec::width == 16 ? 4 : 2, TWO = ONE / 2;
    const int64_t size = codes.panel_bytes();
    if (rows.count == 1) {
        for (int64_t p = 0; p < count; p += ONE) {
            multiply_parted<1, ONE>(codes, panels + p * size, first + p, count - p, rows, results);
        }
        return;
    }
    for (int64_t p = 0; p < count; p += TWO) {
        multiply_parted<MOST_PARTED, TWO>(codes, panels + p * size, first + p, count - p, rows, results);
    }
}

// All rows with all codes.
static void by_parts(const Codes& codes, const uint8_t* packed, const int64_t* order, const Floats<bfloat16>& kind,
                     int64_t threads) {
    const int64_t stride = codes.filled(STEP) / STEP * PARTS_OF_X * WORDS, groups = codes.groups();
    auto numbers = scratch<int32_t>(kind.m * stride);
    auto steps = scratch<float>(kind.m * groups), sums = scratch<float>(kind.m * groups);
    share(kind.m, kind.m * kind.inputs < SMALL ? 1 : threads, [&](int64_t row, int64_t) {
        part_row(codes, kind.x + row * kind.inputs, order, numbers.get() + row * stride, steps.get() + row * groups,
                 sums.get() + row * groups);
    });
    const int64_t strips = parts(kind.m, MOST_PARTED), panels = parts(kind.outputs, PANEL);
    const int64_t some = parts(parts(panels, TASKS * threads), 4) * 4;
    if (kind.m * kind.inputs * kind.outputs < SMALL) threads = 1;
    const Results results{finish_floats<bfloat16>, &kind};
    share(parts(panels, some), threads, [&](int64_t task, int64_t) {
        const int64_t last = std::min(panels, (task + 1) * some);
        for (int64_t p = task * some; p < last; p += 4) {
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t from = s * kind.m / strips, to = (s + 1) * kind.m / strips;
                const PartedRows rows{numbers.get() + from * stride, stride,       steps.get() + from * groups,
                                      sums.get() + from * groups,    groups, from, to - from};
                multiply_parted_rows(codes, packed + p * codes.panel_bytes(), p, std::min<int64_t>(4, last - p), rows,
                                     results);
            }
        }
    });
}
#endif
