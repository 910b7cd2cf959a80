// Products of int8 with a packed int8 matrix: each row of x and each output has a scale, sums are exact in int32.
//
// Numbers are divided by a scale of which 127 make the largest of them, and rounded to the nearest (ties to even), rows
// as they come and the matrix when it is packed. A result is sum * (scale of the row * scale of the output) + bias.
//
// AMX multiplies them as they are (tiles.h). AVX-512's dot product of four takes rows without a sign: 128 is added to
// them there, and 128 times the sum of an output's weights, kept beside its scale, taken off the sum. With AVX2 pairs of
// int16 are multiplied, twice as many at a time as of float32; instructions for pairs of int8 are left alone, as their
// sums would saturate.
//
// Where calibration found one scale and an offset for all rows, a level is x / scale, rounded, plus the offset, and the
// result (sum + addend of the output) * scale of the output + bias.
#include "gelu.h"
#include "levels.h"
#include "packed.h"
#include "tiles.h"

#include <cmath>

// The inputs of a group.
template <typename Row>
static inline int32_t read_int(const Row* row) {
    int32_t group;
    std::memcpy(&group, row, sizeof(group));
    return group;
}

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define DOT_OF_FOUR
struct Ints {
    static constexpr int width = 16;
    Lanes v;

    static Ints zero() { return {Lanes{}}; }
    void store(int32_t* to) const { _mm512_storeu_si512(to, (__m512i)v); }
};
#else
struct Ints {
    static constexpr int width = 8;
    __m256i v;

    static Ints zero() { return {_mm256_setzero_si256()}; }
    void store(int32_t* to) const { _mm256_storeu_si256((__m256i*)to, v); }
};
#endif

// The rounding of all rows where their own numbers do not decide it; a scale of 0 says that they do.
struct StaticRows {
    float scale;
    int32_t offset;
};

// Levels of a row by a given scale, to which `added` is added. True division: levels are the file's own.
template <typename T, typename Row>
static inline void round_static(Row* to, const T* from, int64_t count, StaticRows rows, float added) {
    over(0, count, [&](int64_t i, auto lanes) {
        const Vec level = round(lanes.load(from + i) / Vec::all(rows.scale)) + Vec::all(float(rows.offset));
        lanes.store(to + i, max(Vec::all(-128.0f), min(Vec::all(127.0f), level)) + Vec::all(added));
    });
}

// With `TILED`, rows and sums as AMX has them.
template <typename T, bool TILED = false>
struct Int8 {
#ifdef DOT_OF_FOUR
    using Row = std::conditional_t<TILED, int8_t, uint8_t>;
    static constexpr int64_t group = 4;
    static constexpr int32_t added = TILED ? 0 : 128;
#else
    using Row = int16_t;
    static constexpr int64_t group = 2;
    static constexpr int32_t added = 0;
#endif
    using Weight = int8_t;
    using Sum = int32_t;
    using Register = Ints;
    static constexpr bool once = true;
    static constexpr int64_t taken = group;  // of two groups GCC would add up the products first, and run out of registers

    const T* x;
    int64_t m, inputs;
    Scaled* rows;
    const float* scales;
    const int32_t* totals;
    const T* bias;
    T* out;
    int64_t outputs;
    bool activated;  // by GELU
    StaticRows all;
    const int32_t* addend;

    void fill(Row* to, int64_t row) const {
        if (all.scale != 0) return fill_static(to, row);
        rows[row] = Scaled::of(x + row * inputs, inputs);
        round_to(to, x + row * inputs, inputs, rows[row].inverse, added);
        std::fill(to + inputs, to + padded<Weight>(inputs), Row(added));
    }

    // A row with a NaN has it for its scale.
    void fill_static(Row* to, int64_t row) const {
        const T* from = x + row * inputs;
        Vec numbers = Vec::zero();
        over(0, inputs, [&](int64_t i, auto lanes) {
            const Vec some = lanes.load(from + i);
            numbers = numbers + min(Vec::all(1.0f), abs(some));  // of a number and a NaN, the second
        });
        const float sum = numbers.sum();
        rows[row].scale = sum != sum ? sum : 1.0f;
        round_static(to, from, inputs, all, added);
        std::fill(to + inputs, to + padded<Weight>(inputs), Row(added));
    }

    void finish(const int32_t* sums, int64_t row, int64_t output, int64_t count) const {
        T* to = out + row * outputs + output;
        count = std::min(count, outputs - output);
        const Vec scale = Vec::all(rows[row].scale);
        FOR_VECTORS(i, count) {
            const Vec y = exact(sums + i, output + i, count - i);
            const Vec both = scale * load_at(scales + output, i, count);
            const Vec z = bias ? fma(y, both, load_at(bias + output, i, count)) : y * both;
            store_at(to, i, count, activated ? gelu_of_stored<T>(z) : z);
        }
    }

    // The sums of `count` outputs, or of a vector of them, without what was added to the rows.
    Vec exact(const int32_t* sums, int64_t output, int64_t count) const {
        alignas(64) int32_t more[Vec::width];  // as many as are read below: without VNNI, Ints has half as many
        if (addend) {
            const int64_t there = std::min<int64_t>(count, Vec::width);
            for (int64_t i = 0; i < there; ++i) more[i] = sums[i] + addend[output + i];
            std::fill(more + there, more + Vec::width, 0);
            sums = more;
        }
        if constexpr (added == 0) return Vec::load(sums);
#ifdef DOT_OF_FOUR
        const __mmask16 there = count < 16 ? (1 << count) - 1 : 0xFFFF;
        const __m512i excess = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(there, totals + output), 7);
        static_assert(added == 0 || added == 1 << 7);
        return {_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums), excess))};
#endif
    }

    template <int ROWS, int PANELS, int VECTORS>
    static inline void step(Ints (&sums)[ROWS][VECTORS], const Row* rows, int64_t stride, const int8_t* weights,
                            int64_t panel) {
        constexpr int PER_PANEL = VECTORS / PANELS;
        Ints some[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            some[v] = load(weights + v / PER_PANEL * panel + v % PER_PANEL * Ints::width * group);
            asm("" : "+v"(some[v].v));
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            Ints together = broadcast(rows + r * stride);
            asm("" : "+v"(together.v));
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) add_products(sums[r][v], together, some[v]);
        }
    }

#ifdef DOT_OF_FOUR
    static inline Ints load(const int8_t* weights) { return {(Lanes)_mm512_loadu_si512(weights)}; }
    static inline Ints broadcast(const Row* row) { return {(Lanes)_mm512_set1_epi32(read_int(row))}; }
    static inline void add_products(Ints& sum, Ints row, Ints weights) {
        sum.v = (Lanes)_mm512_dpbusd_epi32((__m512i)sum.v, (__m512i)row.v, (__m512i)weights.v);
    }
#else
    static inline Ints load(const int8_t* weights) {
        return {_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)weights))};
    }
    static inline Ints broadcast(const Row* row) { return {_mm256_set1_epi32(read_int(row))}; }
    static inline void add_products(Ints& sum, Ints row, Ints weights) {
        sum.v = _mm256_add_epi32(sum.v, _mm256_madd_epi16(row.v, weights.v));
    }
#endif
};

template <typename T>
static void pack(const T* matrix, Part part, int8_t* packed, float* scales, int32_t* totals, int64_t threads) {
    auto found = scratch<Scaled>(part.count);
    pack_panels<Int8<T>>(part, packed, threads, [&](int64_t o, int64_t k, int64_t count, int8_t* to) {
        const T* row = matrix + o * part.inputs;
        if (k == 0) {
            found[o] = Scaled::of(row, part.inputs);
            scales[o] = found[o].scale;
            totals[o] = 0;
        }
        round_to(to, row + k, count, found[o].inverse, 0);
        for (int64_t i = 0; i < count; ++i) totals[o] += to[i];
    });
}

KERNEL void pack_int8(int64_t dtype, const void* matrix, int64_t first, int64_t count, int64_t inputs,
                      int64_t outputs, void* packed, void* scales, void* totals, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        const Part part{first, count, inputs, outputs};
        pack((const T*)matrix, part, (int8_t*)packed, (float*)scales + first, (int32_t*)totals + first, threads);
    });
}

// A matrix of int8 as it is, of which `totals` are the sums of each output's weights.
KERNEL void pack_levels(const void* levels, int64_t first, int64_t count, int64_t inputs, int64_t outputs, void* packed,
                        void* totals, int64_t threads) {
    const Part part{first, count, inputs, outputs};
    int32_t* sums = (int32_t*)totals + first;
    pack_panels<Int8<float>>(part, (int8_t*)packed, threads, [&](int64_t o, int64_t k, int64_t some, int8_t* to) {
        std::memcpy(to, (const int8_t*)levels + o * inputs + k, some);
        if (k == 0) sums[o] = 0;
        for (int64_t i = 0; i < some; ++i) sums[o] += to[i];
    });
}

// Rows that are kept at a time, as int8 or as int16.
static constexpr int64_t WAVE = 16 * BLOCK_ROWS / sizeof(Int8<float>::Row);

#ifdef TILES
// Rows up to which vectors read weights faster. Sums are exact either way.
static constexpr int64_t FEW = 4;

template <typename T>
static void int8_by_tiles(const Int8<T, true>& kind, const int8_t* packed, int64_t threads) {
    const int64_t inputs = padded<int8_t>(kind.inputs);
    auto rows = scratch<int8_t>(kind.m * inputs);
    share(kind.m, kind.m * inputs < SMALL ? 1 : threads,
          [&](int64_t row, int64_t) { kind.fill(rows.get() + row * inputs, row); });
    product_by_tiles(kind, {rows.get(), inputs}, packed, threads);
}
#endif

KERNEL void linear_int8(int64_t dtype, const void* x, int64_t m, int64_t inputs, const void* packed,
                        const void* scales, const void* totals, const void* bias, void* out, int64_t outputs,
                        int64_t activated, float row_scale, int64_t row_offset, const void* addend, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Scaled rows[WAVE];
        for (int64_t row = 0; row < m; row += WAVE) {
            const auto kind = [&](auto tiled) {
                return Int8<T, tiled>{(const T*)x + row * inputs, std::min(WAVE, m - row), inputs,
                                      rows,                       (const float*)scales,    (const int32_t*)totals,
                                      (const T*)bias,             (T*)out + row * outputs, outputs,
                                      bool(activated),            {row_scale, int32_t(row_offset)},
                                      (const int32_t*)addend};
            };
#ifdef TILES
            if (m > FEW && tiles_permitted()) {
                int8_by_tiles(kind(std::true_type{}), (const int8_t*)packed, threads);
                continue;
            }
#endif
            product(kind(std::false_type{}), (const int8_t*)packed, threads);
        }
    });
}
