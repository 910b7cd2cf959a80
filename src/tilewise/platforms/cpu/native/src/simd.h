// Vectors of float32, and loading and storing float32 and bfloat16 through them.
//
// Everything is computed in float32. `Vec` has 8 of them with AVX2 and FMA, 16 with AVX-512; kernels are written for
// `Vec::width` of either. bfloat16 is the upper half of a float32, rounded to the nearest (ties to even) on its way out.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

// Dot products of pairs of bfloat16 are twice as fast as products of float32 on AMD's CPUs, and half as fast on Intel's:
// there SLOW_PAIRS is defined by who compiles this (build.py), and they are left alone.
#if defined(__AVX512BF16__) && !defined(SLOW_PAIRS)
#define DOT_OF_PAIRS
#endif

#define KERNEL extern "C" __attribute__((visibility("default")))

struct bfloat16 {
    uint16_t bits;
};

// E4M3 without infinities, torch's float8_e4m3fn: a sign, four bits of an exponent above -7, three of a fraction. Bits
// where float16 has them are a number 2^8 times smaller, and such are those that are loaded: whoever multiplies them by
// a scale multiplies that by UNIT once.
struct float8 {
    uint8_t bits;
};

template <typename T>
static constexpr float UNIT = 1.0f;
template <>
constexpr float UNIT<float8> = 256.0f;

// The dtypes as Python names them.
enum Dtype : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };

// Calls `work` with a number of the dtype, so that it can be written once for both.
template <typename Work>
static inline void with_dtype(int64_t dtype, Work work) {
    if (dtype == FLOAT32) {
        work(float{});
    } else {
        work(bfloat16{});
    }
}

// Types that a cache of keys and values of 8 bits keeps, as Python numbers them.
enum Kept : int64_t { KEPT_INT8 = 1, KEPT_FLOAT8 = 2 };

// Calls `work` with a number of the dtype and one of what the cache keeps.
template <typename Work>
static inline void with_quantised(int64_t dtype, int64_t kept, Work work) {
    with_dtype(dtype, [&](auto number) {
        if (kept == KEPT_INT8) {
            work(number, int8_t{});
        } else {
            work(number, float8{});
        }
    });
}

static inline float to_float(float x) { return x; }

static inline float to_float(int8_t x) { return x; }

// Bits of E4M3, moved to where float32 has its own, are a number 2^120 times smaller.
static inline float to_float(float8 x) {
    const uint32_t bits = uint32_t(x.bits & 0x80) << 24 | uint32_t(x.bits & 0x7F) << 20;
    float value;
    std::memcpy(&value, &bits, 4);
    return value * (0x1p120f / UNIT<float8>);
}

static inline float to_float(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline void put(float* to, float x) { *to = x; }

static inline void put(bfloat16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // Adding to a NaN's bits could make it infinite; its upper half stays a NaN when it is quiet.
    to->bits = x != x ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Rounded to the nearest, ties to even; x is no larger than 448.
static inline void put(float8* to, float x) {
    uint32_t bits, steps;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 24 & 0x80, size = bits & 0x7FFFFFFF;
    const uint32_t normal = (size + 0x7FFFF + (size >> 20 & 1) - (120u << 23)) >> 20;
    // Below 2^-6 numbers are 2^-9 apart; adding 1.5 * 2^23 leaves how many of these there are in the lowest bits.
    float small;
    std::memcpy(&small, &size, 4);
    small = small * 512.0f + 12582912.0f;
    std::memcpy(&steps, &small, 4);
    to->bits = uint8_t(sign | (size < (121u << 23) ? steps & 15 : normal));
}

// Stores a whole number, which has to be within the type's range.
template <typename Integer>
static inline void put(Integer* to, float x) {
    *to = Integer(int32_t(x));
}

// Eight at a time, whatever `Vec` is: what transposes is written for this width.
static inline __m256 load8(const float* from) { return _mm256_loadu_ps(from); }

static inline __m256 load8(const bfloat16* from) {
    __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

static inline __m256 load8(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

static inline __m256 load8(const float8* from) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
#ifdef __F16C__
    const __m128i halves = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
    return _mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(int16_t(0xBFFF))));
#else
    const __m256i wide = _mm256_cvtepi8_epi32(bytes);
    const __m256i some = _mm256_and_si256(_mm256_slli_epi32(wide, 20), _mm256_set1_epi32(int(0x87F00000)));
    return _mm256_mul_ps(_mm256_castsi256_ps(some), _mm256_set1_ps(0x1p120f / UNIT<float8>));
#endif
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

// A vector of 16 whole numbers. GCC 12 keeps arrays of these in registers, and those of __m512i on the stack.
typedef int32_t Lanes __attribute__((vector_size(64)));

struct Vec {
    static constexpr int width = 16;
    __m512 v;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec all(float x) { return {_mm512_set1_ps(x)}; }
    static Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
    static Vec load(const bfloat16* from) {
        __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
    }
    static Vec load(const int32_t* from) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(from))}; }
    static Vec load(const int8_t* from) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
    }
    static Vec load(const float8* from) {
        const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(int16_t(0xBFFF)));
        return {_mm512_cvtph_ps(halves)};
    }
    void store(float* to) const { _mm512_storeu_ps(to, v); }
    void store(int16_t* to) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
    }
    void store(int8_t* to) const {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
    }
    void store(uint8_t* to) const { store(reinterpret_cast<int8_t*>(to)); }
    void store(bfloat16* to) const {
#ifdef __AVX512BF16__
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(v));
#else
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
        bits = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
        __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
#endif
    }
    void store(float8* to) const {
        alignas(64) float lanes[width];
        store(lanes);
        for (int i = 0; i < width; ++i) put(to + i, lanes[i]);
    }
    float sum() const { return _mm512_reduce_add_ps(v); }
    float max() const { return _mm512_reduce_max_ps(v); }
};

// The first, or the second, of each pair in a vector of pairs of bfloat16.
static inline Vec even(const bfloat16* pairs) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16))};
}
static inline Vec odd(const bfloat16* pairs) {
    __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(pairs), upper))};
}

static inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
// The eights of a vector, each lane with that of the other eight.
static inline Vec max_of_eights(Vec a) { return {_mm512_max_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4E))}; }
static inline Vec sum_of_eights(Vec a) { return {_mm512_add_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4E))}; }
static inline __m256 half_sum(Vec a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
}
// a with the sign of b.
static inline Vec with_sign(Vec a, Vec b) {
    return {_mm512_or_ps(a.v, _mm512_and_ps(b.v, _mm512_set1_ps(-0.0f)))};
}
// a * 2^n for whole n.
static inline Vec scaled(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

#elif defined(__AVX2__) && defined(__FMA__)

struct Vec {
    static constexpr int width = 8;
    __m256 v;

    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec all(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float* from) { return {load8(from)}; }
    static Vec load(const bfloat16* from) { return {load8(from)}; }
    static Vec load(const int8_t* from) { return {load8(from)}; }
    static Vec load(const float8* from) { return {load8(from)}; }
    static Vec load(const int32_t* from) {
        return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
    }
    void store(float* to) const { _mm256_storeu_ps(to, v); }
    void store(int16_t* to) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), shorts()); }
    void store(int8_t* to) const {
        _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(shorts(), shorts()));
    }
    void store(bfloat16* to) const {
        __m256i bits = _mm256_castps_si256(v);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
        __m256 quiet = _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_set1_epi32(0x400000)));
        __m256 chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), quiet, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        bits = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
    }
    void store(float8* to) const {
        alignas(64) float lanes[width];
        store(lanes);
        for (int i = 0; i < width; ++i) put(to + i, lanes[i]);
    }
    float sum() const {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    float max() const {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }

   private:
    __m128i shorts() const {
        __m256i whole = _mm256_cvtps_epi32(v);
        return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    }
};

// The first, or the second, of each pair in a vector of pairs of bfloat16.
static inline Vec even(const bfloat16* pairs) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)pairs), 16))};
}
static inline Vec odd(const bfloat16* pairs) {
    __m256i upper = _mm256_set1_epi32(int(0xFFFF0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)pairs), upper))};
}

static inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
static inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
// A vector is one eight.
static inline Vec max_of_eights(Vec a) { return a; }
static inline Vec sum_of_eights(Vec a) { return a; }
static inline __m256 half_sum(Vec a) { return a.v; }
// a with the sign of b.
static inline Vec with_sign(Vec a, Vec b) {
    return {_mm256_or_ps(a.v, _mm256_and_ps(b.v, _mm256_set1_ps(-0.0f)))};
}
// a * 2^n for whole n of a normal result, at least -127 (which gives zero).
static inline Vec scaled(Vec a, Vec n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(exponent))};
}

#else
#error "no vectors for this CPU: kernels need AVX2 and FMA"
#endif

// Each lane is the sum of one of eight vectors.
static inline __m256 sums_of(const Vec vectors[8]) {
    __m256 pairs[4], fours[2];
    for (int i = 0; i < 4; ++i) pairs[i] = _mm256_hadd_ps(half_sum(vectors[2 * i]), half_sum(vectors[2 * i + 1]));
    for (int i = 0; i < 2; ++i) fours[i] = _mm256_hadd_ps(pairs[2 * i], pairs[2 * i + 1]);
    return _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                         _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

// 2^x: x is a whole number and a rest in [-1/2, 1/2], of which a polynomial
// (minimax of 2^r over the interval, fitted here: 2e-9 off before rounding).
// Zero from -127 down, so also for minus infinity; x must not exceed 127. NaN stays NaN.
static inline Vec exp2(Vec x) {
    x = max(Vec::all(-127.0f), x);  // of a NaN and a number, the second: NaN stays
    Vec whole = round(x);
    Vec rest = x - whole;
    Vec y = Vec::all(1.53533621e-4f);
    y = fma(y, rest, Vec::all(1.33988746e-3f));
    y = fma(y, rest, Vec::all(9.61843736e-3f));
    y = fma(y, rest, Vec::all(5.55033247e-2f));
    y = fma(y, rest, Vec::all(2.40226479e-1f));
    y = fma(y, rest, Vec::all(6.93147203e-1f));
    y = fma(y, rest, Vec::all(1.0f));
    return scaled(y, whole);
}

static constexpr float LOG2_E = 1.44269504088896340736f;

// Loads a vector of which only the first `count` < width numbers are there; zeros follow them.
template <typename T>
static inline Vec load_some(const T* from, int64_t count) {
    alignas(64) float lanes[Vec::width] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = to_float(from[i]);
    return Vec::load(lanes);
}

template <typename T>
static inline void store_some(T* to, Vec x, int64_t count) {
    alignas(64) float lanes[Vec::width];
    x.store(lanes);
    for (int64_t i = 0; i < count; ++i) put(to + i, lanes[i]);
}

// The first numbers of a vector, zeros behind them.
static inline Vec first_of(Vec x, int64_t count) {
    alignas(64) float lanes[Vec::width];
    x.store(lanes);
    return load_some(lanes, count);
}

// i is where each vector of [0, n) begins; the last one may end beyond n.
#define FOR_VECTORS(i, n) for (int64_t i = 0; i < (n); i += Vec::width)

// Numbers of a row that a vector takes: all of its lanes, or the first ones of the last vector. Work that is written once
// for both by `over` asks nothing between them.
struct AllLanes {
    template <typename T>
    Vec load(const T* from) const {
        return Vec::load(from);
    }
    template <typename T>
    void store(T* to, Vec x) const {
        x.store(to);
    }
    // Zeros in the other lanes.
    Vec only(Vec x) const { return x; }
};

struct FirstLanes {
    int64_t count;

    template <typename T>
    Vec load(const T* from) const {
        return load_some(from, count);
    }
    template <typename T>
    void store(T* to, Vec x) const {
        store_some(to, x, count);
    }
    Vec only(Vec x) const { return first_of(x, count); }
};

// Calls work(i, lanes) for each vector of [from, to).
template <typename Work>
static inline void over(int64_t from, int64_t to, Work work) {
    for (; from + Vec::width <= to; from += Vec::width) work(from, AllLanes{});
    if (from < to) work(from, FirstLanes{to - from});
}

template <typename T>
static inline Vec load_at(const T* row, int64_t i, int64_t n) {
    return i + Vec::width <= n ? Vec::load(row + i) : load_some(row + i, n - i);
}

template <typename T>
static inline void store_at(T* row, int64_t i, int64_t n, Vec x) {
    if (i + Vec::width <= n) {
        x.store(row + i);
    } else {
        store_some(row + i, x, n - i);
    }
}
