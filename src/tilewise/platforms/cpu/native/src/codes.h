// Matrices of codes in groups: how they lie in memory, and how codes become floats.
//
// Such a matrix is cut into panels of PANEL outputs. A panel is: the scales of its groups, their shifts, and their codes,
// group by group, each filled up with code 0 to a multiple of STEP inputs. Eight inputs of 4 bits are a line of 64 bytes:
// 16 lanes, one for each output, of which the low half has inputs 0, 2, 4, 6 and the high half 1, 3, 5, 7, so that a shift
// brings both numbers of a pair to the low ends of the halves. Eight inputs of 8 bits are two lines, [input][output].
//
// A number is table[code] * scale + shift.
#pragma once

#include "packed.h"

enum Code : int64_t { UINT4 = 0, INT4 = 1, FP4 = 2, UINT8 = 3, INT8 = 4, FP8 = 5 };
enum Scales : int64_t { SCALES_FLOAT32 = 0, SCALES_BFLOAT16 = 1, SCALES_FLOAT16 = 2 };
enum Shifts : int64_t { SHIFTS_NONE = 0, SHIFTS_FLOAT32 = 1, SHIFTS_ZEROS = 2 };  // zeros: bytes, -zero * scale is meant

static constexpr int64_t STEP = 8;

// The sizes and kinds that Python gives of a matrix, and what follows for its panels. Inner loops ask often: nothing is
// divided there.
class Codes {
  public:
    const int64_t code, inputs, outputs, group, scales, shifts;

    Codes(int64_t code, int64_t inputs, int64_t outputs, int64_t group, int64_t scales, int64_t shifts)
        : code(code), inputs(inputs), outputs(outputs), group(group), scales(scales), shifts(shifts),
          groups_(parts(inputs, group)),
          shifts_at_(whole_lines(groups_ * PANEL * (scales == SCALES_FLOAT32 ? 4 : 2))),
          codes_at_(shifts_at_ + whole_lines(groups_ * PANEL * (shifts == SHIFTS_NONE ? 0 : shifts == SHIFTS_FLOAT32 ? 4 : 1))),
          panel_bytes_(codes_at_ + filled(STEP) * PANEL * bits() / 8) {}

    int64_t groups() const { return groups_; }
    int64_t length(int64_t g) const { return std::min(group, inputs - g * group); }
    int64_t bits() const { return code < UINT8 ? 4 : 8; }
    // Inputs with those that fill each group up to so many.
    int64_t filled(int64_t step) const {
        return (inputs / group * parts(group, step) + parts(inputs % group, step)) * step;
    }
    // Places in a panel, in bytes, at which shifts and codes begin.
    int64_t shifts_at() const { return shifts_at_; }
    int64_t codes_at() const { return codes_at_; }
    int64_t panel_bytes() const { return panel_bytes_; }

  private:
    const int64_t groups_, shifts_at_, codes_at_, panel_bytes_;

    static int64_t whole_lines(int64_t bytes) { return parts(bytes, 64) * 64; }
};

static inline Vec load_half(const uint16_t* from) {
#ifdef __AVX512F__
    return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))};
#else
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from))};
#endif
}

static inline Vec load_bytes(const uint8_t* from) {
#ifdef __AVX512F__
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)))};
#else
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)))};
#endif
}

static inline Vec load_bytes(const int8_t* from) {
#ifdef __AVX512F__
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)))};
#else
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)))};
#endif
}

// The product as it is rounded by itself: GCC would make one operation of it and the sum behind it.
static inline Vec rounded_product(Vec a, Vec b) {
    Vec product = a * b;
    asm("" : "+v"(product.v));
    return product;
}

// Scales and shifts of a panel's outputs, those from `output` on.
struct PanelScales {
    const Codes& codes;
    const uint8_t* panel;

    Vec scale(int64_t g, int64_t output) const {
        const int64_t at = g * PANEL + output;
        if (codes.scales == SCALES_FLOAT32) return Vec::load((const float*)panel + at);
        if (codes.scales == SCALES_BFLOAT16) return Vec::load((const bfloat16*)panel + at);
        return load_half((const uint16_t*)panel + at);
    }

    Vec shift(int64_t g, int64_t output, Vec scale) const {
        const uint8_t* shifts = panel + codes.shifts_at();
        const int64_t at = g * PANEL + output;
        if (codes.shifts == SHIFTS_FLOAT32) return Vec::load((const float*)shifts + at);
        return rounded_product(Vec::zero() - load_bytes(shifts + at), scale);
    }
};

// Decoders turn codes into floats. For the code in slot j of a step, number(line, j) is times(j) * (n / factor + offset),
// where n is the number that the code stands for. Whoever multiplies makes up for the three where it costs least.
//   bytes    of a step
//   input(j) which of a step's inputs is in slot j

struct NibbleOrder {
    static constexpr int64_t bytes = 64;
    static constexpr int input(int slot) { return slot < 4 ? 2 * slot : 2 * slot - 7; }
};

struct ByteOrder {
    static constexpr int64_t bytes = 128;
    static constexpr int input(int slot) { return slot; }
};

#ifdef __AVX512F__

// Looks codes up in a table by the low four bits of each lane, or of each half of a lane where pairs are wanted.
struct Nibbles : NibbleOrder {
    Vec table;
    Lanes pairs;  // the same in bfloat16, twice, as a fifth bit chooses too
    float factor = 1, offset = 0;

    using Line = Lanes;
    static constexpr float times(int) { return 1; }

    explicit Nibbles(int64_t code) {
        alignas(64) static const float halves[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
        alignas(64) float numbers[16];
        for (int i = 0; i < 16; ++i) numbers[i] = code == FP4 ? halves[i] : float(code == INT4 ? i - 8 : i);
        table = Vec::load(numbers);
        alignas(64) bfloat16 short_numbers[32];
        for (int i = 0; i < 32; ++i) put(&short_numbers[i], numbers[i % 16]);
        pairs = (Lanes)_mm512_load_si512(short_numbers);
    }

    static Line load(const uint8_t* step, int) {
        Lanes line = (Lanes)_mm512_loadu_si512(step);
        asm("" : "+v"(line));  // in a register: GCC would load it for each shift
        return line;
    }
    Vec number(Line line, int slot) const {
        return {_mm512_permutexvar_ps(_mm512_srli_epi32((__m512i)line, 4 * slot), table.v)};
    }
};

static inline void put_pairs(const Nibbles& decoder, const uint8_t* step, bfloat16* to) {
    const __m512i line = (__m512i)Nibbles::load(step, 0);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        _mm512_store_si512(to + 32 * r, _mm512_permutexvar_epi16(_mm512_srli_epi32(line, 4 * r), (__m512i)decoder.pairs));
    }
}

using WholeNibbles = Nibbles;
using FloatNibbles = Nibbles;

#else

// Masks codes where they are: one that is not shifted down is 16 ^ slot times too large.
struct WholeNibbles : NibbleOrder {
    float factor = 1, offset;

    struct Line {
        __m256i low, high;
    };
    static constexpr float times(int slot) { return float(1 << 4 * (slot % 4)); }

    explicit WholeNibbles(int64_t code) : offset(code == INT4 ? 8.0f : 0.0f) {}

    static Line load(const uint8_t* step, int half) {
        const __m256i line = _mm256_loadu_si256((const __m256i*)(step + 32 * half));
        return {line, _mm256_srli_epi32(line, 16)};
    }
    Vec number(Line line, int slot) const {
        const __m256i mask = _mm256_set1_epi32(15 << 4 * (slot % 4));
        return {_mm256_cvtepi32_ps(_mm256_and_si256(slot < 4 ? line.low : line.high, mask))};
    }
};

// Looks E2M1 up in a table, as bytes of twice its number.
struct FloatNibbles : NibbleOrder {
    float factor = 0.5f, offset = 0;

    struct Line {
        __m256i even, odd;  // slots
    };
    static constexpr float times(int) { return 1; }

    explicit FloatNibbles(int64_t) {}

    static Line load(const uint8_t* step, int half) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
        const __m256i line = _mm256_loadu_si256((const __m256i*)(step + 32 * half)), low = _mm256_set1_epi8(15);
        return {_mm256_shuffle_epi8(table, _mm256_and_si256(line, low)),
                _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(line, 4), low))};
    }
    Vec number(Line line, int slot) const {
        const __m256i top = _mm256_slli_epi32(slot % 2 ? line.odd : line.even, 24 - 8 * (slot / 2));
        return {_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24))};
    }
};

#endif

struct ByteLine {
    const uint8_t* codes;
};

template <typename Byte>
struct WholeBytes : ByteOrder {
    float factor = 1, offset = 0;

    using Line = ByteLine;
    static constexpr float times(int) { return 1; }

    explicit WholeBytes(int64_t) {}

    static Line load(const uint8_t* step, int half) { return {step + Vec::width * half}; }
    Vec number(Line line, int slot) const { return load_bytes((const Byte*)line.codes + PANEL * slot); }
};

// E4M3 through half precision, whose exponent is 8 less: sign and seven bits as they are, over 256.
struct FloatBytes : ByteOrder {
    float factor = 256, offset = 0;

    using Line = ByteLine;
    static constexpr float times(int) { return 1; }

#ifdef __AVX512VBMI__
    // The upper and the lower bytes of the numbers as bfloat16, chosen by seven bits.
    Lanes upper[2], lower[2];

    explicit FloatBytes(int64_t) {
        alignas(64) uint8_t bytes[2][128];
        for (int i = 0; i < 128; ++i) {
            bfloat16 number;
            put(&number, _cvtsh_ss(uint16_t(i << 7)));
            bytes[0][i] = number.bits >> 8;
            bytes[1][i] = number.bits & 0xFF;
        }
        for (int i = 0; i < 2; ++i) {
            upper[i] = (Lanes)_mm512_load_si512(bytes[0] + 64 * i);
            lower[i] = (Lanes)_mm512_load_si512(bytes[1] + 64 * i);
        }
    }
#else
    explicit FloatBytes(int64_t) {}
#endif

    static Line load(const uint8_t* step, int half) { return {step + Vec::width * half}; }
    Vec number(Line line, int slot) const {
        const __m128i* codes = (const __m128i*)(line.codes + PANEL * slot);
#ifdef __AVX512F__
        const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(codes)), 7);
        return {_mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(int16_t(0xBF80))))};
#else
        const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64(codes)), 7);
        return {_mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(int16_t(0xBF80))))};
#endif
    }
};

#ifdef __AVX512F__
// A step's numbers over `factor` as pairs of inputs, [STEP / 2][PANEL][2]: all of them are exact in bfloat16.
template <typename Decoder>
static inline void put_pairs(const Decoder& decoder, const uint8_t* step, bfloat16* to) {
    const auto line = Decoder::load(step, 0);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
        const __m512i first = _mm512_castps_si512(decoder.number(line, 2 * r).v);
        const __m512i second = _mm512_castps_si512(decoder.number(line, 2 * r + 1).v);
        _mm512_store_si512(to + 32 * r, _mm512_mask_mov_epi16(_mm512_srli_epi32(first, 16), 0xAAAAAAAA, second));
    }
}

#ifdef __AVX512VBMI__
static inline void put_pairs(const FloatBytes& decoder, const uint8_t* step, bfloat16* to) {
    // Each 16 bytes get the pairs of four outputs: first those of inputs 0 and 1, then those of 2 and 3.
    alignas(64) static constexpr uint8_t ORDER[64] = {
        0,  16, 1,  17, 2,  18, 3,  19, 32, 48, 33, 49, 34, 50, 35, 51, 4,  20, 5,  21, 6,  22, 7,  23, 36, 52, 37, 53, 38, 54, 39, 55,
        8,  24, 9,  25, 10, 26, 11, 27, 40, 56, 41, 57, 42, 58, 43, 59, 12, 28, 13, 29, 14, 30, 15, 31, 44, 60, 45, 61, 46, 62, 47, 63};
    const __m512i order = _mm512_load_si512(ORDER);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, to += 64) {
        const __m512i codes = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(step + 64 * half));
        const __m512i low = _mm512_permutex2var_epi8((__m512i)decoder.lower[0], codes, (__m512i)decoder.lower[1]);
        const __m512i high = _mm512_permutex2var_epi8((__m512i)decoder.upper[0], codes, (__m512i)decoder.upper[1]);
        // with the sign of the code
        const __m512i with_sign = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8(int8_t(0x80)), 0xF8);
        _mm512_store_si512(to, _mm512_unpacklo_epi8(low, with_sign));
        _mm512_store_si512(to + 32, _mm512_unpackhi_epi8(low, with_sign));
    }
}
#endif
#endif

template <typename Work>
static inline void with_decoder(int64_t code, Work work) {
    switch (code) {
        case UINT4:
        case INT4: return work(WholeNibbles(code));
        case FP4: return work(FloatNibbles(code));
        case UINT8: return work(WholeBytes<uint8_t>(code));
        case INT8: return work(WholeBytes<int8_t>(code));
        default: return work(FloatBytes(code));
    }
}
