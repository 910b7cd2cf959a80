// Bicubic resizing of RGB pictures, bit by bit what Pillow makes of them (its Resample.c says how).
//
// Pillow adds up whole numbers: weights of FRACTION bits behind the point, and a half; what comes out is cut off and
// clipped. Sums are exact, so their order does not matter. A weight has too many bits for products of int16, which are
// the fastest there are: it comes as an upper part and LOW lower bits, and each has a sum of its own.
#include "simd.h"

#include <algorithm>
#include <vector>

static constexpr int FRACTION = 22;
static constexpr int LOW = 11;
static constexpr int64_t TOGETHER = 4;  // rows that are resized at a time, as weights are laid out for all of them
static constexpr int64_t GROUP = 4;     // pixels beside each other that are weighed at a time
static constexpr int64_t SLACK = 16;    // bytes behind a row that may be read

// For each output the first of `taps` inputs, and their weights: a group (pair) of upper parts, then one of lower ones.
struct Windows {
    const int32_t* first;
    const int16_t* weights;
    int64_t taps;
};

struct Sums {
    __m256i upper = _mm256_setzero_si256(), lower = _mm256_setzero_si256();

    void add(__m256i pixels, __m256i upper_weights, __m256i lower_weights) {
        upper = _mm256_add_epi32(upper, _mm256_madd_epi16(pixels, upper_weights));
        lower = _mm256_add_epi32(lower, _mm256_madd_epi16(pixels, lower_weights));
    }
    __m256i all() const { return _mm256_add_epi32(_mm256_slli_epi32(upper, LOW), lower); }
};

// Rounds sums of 4 or 8 numbers.
static inline __m128i rounded(__m128i sums) {
    return _mm_srai_epi32(_mm_add_epi32(sums, _mm_set1_epi32(1 << (FRACTION - 1))), FRACTION);
}
static inline __m256i rounded(__m256i sums) {
    return _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(1 << (FRACTION - 1))), FRACTION);
}

// Rows to another width. Of four pixels, two are in either half of a vector: pairs of red, of green, of blue, of nothing.
template <int ROWS>
static void resize_across(const uint8_t* const* rows, uint8_t* const* out, int64_t outputs, const Windows& windows) {
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i upper_places = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i lower_places = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    const int16_t* weights = windows.weights;
    for (int64_t x = 0; x < outputs; ++x) {
        const int64_t from = 3 * int64_t(windows.first[x]);
        Sums sums[ROWS];
        for (int64_t tap = 0; tap < windows.taps; tap += GROUP, weights += 2 * GROUP) {
            const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)weights));
            const __m256i upper = _mm256_permutevar8x32_epi32(both, upper_places);
            const __m256i lower = _mm256_permutevar8x32_epi32(both, lower_places);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const __m128i pixels = _mm_loadu_si128((const __m128i*)(rows[r] + from + 3 * tap));
                sums[r].add(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pixels), pairs), upper, lower);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const __m256i all = sums[r].all();
            const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
            const __m128i levels = _mm_packs_epi32(rounded(sum), rounded(sum));
            const int32_t pixel = _mm_cvtsi128_si32(_mm_packus_epi16(levels, levels));
            std::memcpy(out[r] + 3 * x, &pixel, 3);
        }
    }
}

// Sixteen bytes of a row of the new height; weights are those of its pairs of rows.
static inline void resize_down_16(const uint8_t* const* rows, const int16_t* weights, int64_t taps, int64_t at,
                                  uint8_t* out) {
    Sums front, back;
    for (int64_t tap = 0; tap < taps; tap += 2, weights += 4) {
        int32_t upper, lower;
        std::memcpy(&upper, weights, sizeof(upper));
        std::memcpy(&lower, weights + 2, sizeof(lower));
        const __m128i one = _mm_loadu_si128((const __m128i*)(rows[tap] + at));
        const __m128i other = _mm_loadu_si128((const __m128i*)(rows[tap + 1] + at));
        const __m256i uppers = _mm256_set1_epi32(upper), lowers = _mm256_set1_epi32(lower);
        front.add(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, other)), uppers, lowers);
        back.add(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, other)), uppers, lowers);
    }
    const __m256i levels = _mm256_packs_epi32(rounded(front.all()), rounded(back.all()));
    const __m256i ordered = _mm256_permute4x64_epi64(levels, 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128((__m128i*)(out + at), bytes);
}

// pixels [height, width, 3] to out [height, outputs, 3].
KERNEL void resize_rgb_across(const uint8_t* pixels, int64_t height, int64_t width, uint8_t* out, int64_t outputs,
                              const int32_t* first, const int16_t* weights, int64_t taps) {
    const Windows windows{first, weights, taps};
    const int64_t bytes = 3 * width;
    // Behind the last row nothing may be read.
    std::vector<uint8_t> last(pixels + (height - 1) * bytes, pixels + height * bytes);
    last.resize(bytes + SLACK);
    for (int64_t y = 0; y < height; y += TOGETHER) {
        const int64_t count = std::min(TOGETHER, height - y);
        const uint8_t* rows[TOGETHER];
        uint8_t* to[TOGETHER];
        for (int64_t r = 0; r < count; ++r) {
            rows[r] = y + r + 1 == height ? last.data() : pixels + (y + r) * bytes;
            to[r] = out + (y + r) * 3 * outputs;
        }
        if (count == TOGETHER) {
            resize_across<TOGETHER>(rows, to, outputs, windows);
        } else {
            for (int64_t r = 0; r < count; ++r) resize_across<1>(rows + r, to + r, outputs, windows);
        }
    }
}

// Rows of `bytes`, at least 16, to out [outputs, bytes]. The last sixteen bytes may be computed twice.
KERNEL void resize_down(const uint8_t* pixels, int64_t bytes, uint8_t* out, int64_t outputs, const int32_t* first,
                        const int16_t* weights, int64_t taps) {
    std::vector<const uint8_t*> rows(taps);
    for (int64_t y = 0; y < outputs; ++y, weights += 2 * taps, out += bytes) {
        for (int64_t tap = 0; tap < taps; ++tap) rows[tap] = pixels + (first[y] + tap) * bytes;
        for (int64_t at = 0; at + 16 <= bytes; at += 16) resize_down_16(rows.data(), weights, taps, at, out);
        if (bytes % 16) resize_down_16(rows.data(), weights, taps, bytes - 16, out);
    }
}
