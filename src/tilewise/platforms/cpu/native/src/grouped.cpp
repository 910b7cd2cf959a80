// Products of rows of floats with a matrix of codes in groups (codes.h), in one of four ways.
//
// By codes: of each group x * table[code] is summed up in float32, and scale * sum + shift * (sum of x) added to the
// result. By tiled codes: the same with AMX, as what codes stand for is exact in bfloat16, and a float32 is the sum of
// three of them. Both sum up the numbers of a row in one order, whatever other rows there are. By parts, a few rows of
// bfloat16 with whole numbers of 4 bits: in sums of integers (grouped_parts.h), as fast as codes are read. By a dense
// matrix, for many rows: each task makes the panels that it needs (floats.h), in float32, or rounded to bfloat16 where
// products of that are instructions.
#include "codes.h"
#include "floats.h"
#include "tiles.h"

// Rows that meet the codes at a time.
#ifdef TILES
static constexpr int MOST_AT_ONCE = 2;  // where the system refuses tiles
#else
static constexpr int MOST_AT_ONCE = Vec::width == 16 ? 8 : 4;
#endif
static constexpr int panels_for(int rows) { return Vec::width == 16 ? rows <= 2 ? 4 : 2 : rows == 1 ? 2 : 1; }
// Rows up to which that is faster than making a dense matrix in vectors, and in tiles, where it takes the longer the
// smaller groups are. Tiles multiply the parts of float32 faster than vectors multiply float32.
static constexpr int64_t FEW = Vec::width == 16 ? 64 : 32, FEW_FOR_TILES = 32, FEW_OF_WIDE_GROUPS = 96, WIDE_GROUP = 128;
// Rows that are made ready at a time.
static constexpr int64_t WAVE = 8 * BLOCK_ROWS;

// Codes come as they are in `Codes` of Python's forms: a byte each, or two of 4 bits, the first in the low half.
struct Source {
    const uint8_t* codes;
    const float* scales;
    const float* shifts;  // floats, or whole zeros
};

// Eight codes of 4 bits in the order of a lane.
static inline uint32_t lane_of(uint32_t nibbles) {
    const auto gathered = [](uint32_t x) {
        x &= 0x0F0F0F0F;
        x = (x | x >> 4) & 0x00FF00FF;
        return (x | x >> 8) & 0xFFFF;
    };
    return gathered(nibbles) | gathered(nibbles >> 4) << 16;
}

static void pack_codes(const Codes& as, const Source& from, int64_t output, int64_t column, uint8_t* to) {
    const int64_t bytes = as.inputs * as.bits() / 8;
    for (int64_t g = 0; g < as.groups(); ++g) {
        const uint8_t* codes = from.codes + output * bytes + g * as.group * as.bits() / 8;
        for (int64_t k = 0, length = as.length(g); k < length; k += STEP) {
            const int64_t count = std::min(STEP, length - k);
            if (as.bits() == 4) {
                uint32_t nibbles = 0;
                std::memcpy(&nibbles, codes + k / 2, parts(count, 2));
                nibbles = lane_of(nibbles);
                std::memcpy(to + 4 * column, &nibbles, 4);
                to += 64;
            } else {
                for (int64_t i = 0; i < STEP; ++i, to += PANEL) to[column] = i < count ? codes[k + i] : 0;
            }
        }
    }
}

// A code that is no number makes all products with its output none: its group's scale says so, as no float does.
static bool all_numbers(const Codes& as, const Source& from, int64_t output, int64_t g) {
    if (as.code != FP8) return true;
    const uint8_t* codes = from.codes + output * as.inputs + g * as.group;
    return std::none_of(codes, codes + as.length(g), [](uint8_t code) { return (code & 0x7F) == 0x7F; });
}

static inline void put_half(uint16_t* to, float x) { *to = _cvtss_sh(x, 0); }

static void pack_scales(const Codes& as, const Source& from, int64_t output, int64_t column, uint8_t* panel) {
    for (int64_t g = 0; g < as.groups(); ++g) {
        const int64_t at = g * PANEL + column, own = output * as.groups() + g;
        const float scale = all_numbers(as, from, output, g) ? from.scales[own] : __builtin_nanf("");
        if (as.scales == SCALES_FLOAT32) put((float*)panel + at, scale);
        if (as.scales == SCALES_BFLOAT16) put((bfloat16*)panel + at, scale);
        if (as.scales == SCALES_FLOAT16) put_half((uint16_t*)panel + at, scale);
        uint8_t* shifts = panel + as.shifts_at();
        if (as.shifts == SHIFTS_FLOAT32) put((float*)shifts + at, from.shifts[own]);
        if (as.shifts == SHIFTS_ZEROS) shifts[at] = uint8_t(from.shifts[own]);
    }
}

KERNEL int64_t grouped_bytes(int64_t code, int64_t inputs, int64_t outputs, int64_t group, int64_t scales,
                             int64_t shifts) {
    const Codes as(code, inputs, outputs, group, scales, shifts);
    return parts(outputs, PANEL) * as.panel_bytes();
}

KERNEL void pack_grouped(int64_t code, int64_t inputs, int64_t outputs, int64_t group, int64_t scale, int64_t shift,
                         const void* codes, const void* scales, const void* shifts, void* packed, int64_t threads) {
    const Codes as(code, inputs, outputs, group, scale, shift);
    const Source from{(const uint8_t*)codes, (const float*)scales, (const float*)shifts};
    const int64_t bytes = as.panel_bytes(), panels = parts(outputs, PANEL);
    prefer_large_pages(packed, panels * bytes);
    share(panels, threads, [&](int64_t panel, int64_t) {
        uint8_t* to = (uint8_t*)packed + panel * bytes;
        const int64_t first = panel * PANEL, count = std::min(PANEL, outputs - first);
        if (count < PANEL) std::memset(to, 0, bytes);
        for (int64_t o = 0; o < count; ++o) {
            pack_scales(as, from, first + o, o, to);
            pack_codes(as, from, first + o, o, to + as.codes_at());
        }
    });
}


// Rows as codes meet them: of each group, slots as the decoder has them, zeros where it is filled up.
struct TurnedRows {
    const float* numbers;
    int64_t stride;
    const float* sums;  // of each group's inputs
    int64_t groups;
    int64_t first;
    int64_t count;
};

// One row. Sums are left out where nobody asks for them.
template <typename T, typename Decoder>
static void turn(const Decoder& decoder, const Codes& codes, const T* x, const int64_t* order, float* to, float* sums) {
    alignas(32) int32_t inputs[STEP];
    alignas(32) float times[STEP];
    for (int slot = 0; slot < STEP; ++slot) {
        inputs[slot] = Decoder::input(slot);
        times[slot] = 1 / Decoder::times(slot);
    }
    const __m256i which = _mm256_load_si256((const __m256i*)inputs);
    const __m256 smaller = _mm256_load_ps(times);
    for (int64_t g = 0; g < codes.groups(); ++g) {
        const int64_t from = g * codes.group, length = codes.length(g);
        __m256 sum = _mm256_setzero_ps();
        for (int64_t k = 0; k < length; k += STEP, to += STEP) {
            T some[STEP] = {};
            const T* eight = x + from + k;
            if (order || length - k < STEP) {
                for (int64_t i = 0; i < std::min(STEP, length - k); ++i) some[i] = x[order ? order[from + k + i] : from + k + i];
                eight = some;
            }
            const __m256 numbers = load8(eight);
            sum = _mm256_add_ps(sum, numbers);
            _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_permutevar8x32_ps(numbers, which), smaller));
        }
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        sums[g] = _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
}

// Who takes the sums of a row with some outputs.
struct Results {
    void (*finish)(const void* kind, const float* sums, int64_t row, int64_t output, int64_t count);
    const void* kind;
};

static constexpr int64_t NEAR = 1024;  // bytes ahead that are fetched

// Places at which panels beside each other begin. The last one that is there stands for any behind it: nobody takes
// their sums.
template <int PANELS>
struct Offsets {
    int64_t at[PANELS];
    int64_t operator[](int64_t p) const { return at[p]; }
};
template <int PANELS>
static inline Offsets<PANELS> offsets(const Codes& codes, int64_t there) {
    Offsets<PANELS> found;
    for (int64_t p = 0; p < PANELS; ++p) found.at[p] = std::min(p, there - 1) * codes.panel_bytes();
    return found;
}

template <typename Decoder, int ROWS, int PANELS>
static void multiply_codes(const Decoder& decoder, const Codes& codes, const uint8_t* panels, int64_t first,
                           int64_t there, const TurnedRows& rows, const Results& results) {
    constexpr int HALVES = PANEL / Vec::width, VECTORS = PANELS * HALVES;
    const auto offset = offsets<PANELS>(codes, there);
    alignas(64) float totals[ROWS][PANELS * PANEL] = {};
    const uint8_t* step = panels + codes.codes_at();
    const float* x = rows.numbers;
    for (int64_t g = 0; g < codes.groups(); ++g) {
        Vec sums[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Vec::zero();
        for (int64_t k = 0, length = codes.length(g); k < length; k += STEP, step += Decoder::bytes, x += STEP) {
            typename Decoder::Line lines[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) lines[v] = Decoder::load(step + offset[v / HALVES], v % HALVES);
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p)
#pragma GCC unroll 2
                for (int b = 0; b < Decoder::bytes; b += 64) _mm_prefetch(step + offset[p] + NEAR + b, _MM_HINT_T0);
#pragma GCC unroll 8
            for (int j = 0; j < STEP; ++j) {
                Vec numbers[VECTORS];
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) {
                    numbers[v] = decoder.number(lines[v], j);
                    asm("" : "+v"(numbers[v].v));
                }
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    Vec number = Vec::all(x[r * rows.stride + j]);
                    asm("" : "+v"(number.v));
#pragma GCC unroll 8
                    for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(number, numbers[v], sums[r][v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            const PanelScales own{codes, panels + offset[v / HALVES]};
            const int64_t output = v % HALVES * Vec::width;
            const Vec scale = own.scale(g, output), whole = scale * Vec::all(decoder.factor);
            const Vec shift = codes.shifts == SHIFTS_NONE ? Vec::zero() : own.shift(g, output, scale);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                const Vec sum_of_x = Vec::all(rows.sums[r * rows.groups + g]);
                float* to = &totals[r][v * Vec::width];
                Vec total = Vec::load(to), sum = sums[r][v];
                if (decoder.offset != 0) sum = sum - sum_of_x * Vec::all(decoder.offset);
                total = fma(whole, sum, total);
                if (codes.shifts != SHIFTS_NONE) total = fma(shift, sum_of_x, total);
                total.store(to);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        results.finish(results.kind, totals[r], rows.first + r, first * PANEL, PANELS * PANEL);
    }
}

// Panels [first, first + count) with as many rows as there are, as many panels at once as fit.
template <typename Decoder, int ROWS = MOST_AT_ONCE>
static void multiply_rows(const Decoder& decoder, const Codes& codes, const uint8_t* panels, int64_t first,
                          int64_t count, const TurnedRows& rows, const Results& results) {
    if constexpr (ROWS > 1) {
        if (rows.count < ROWS) {
            return multiply_rows<Decoder, ROWS - 1>(decoder, codes, panels, first, count, rows, results);
        }
    }
    constexpr int AT_ONCE = panels_for(ROWS);
    const int64_t size = codes.panel_bytes();
    for (int64_t p = 0; p < count; p += AT_ONCE) {
        multiply_codes<Decoder, ROWS, AT_ONCE>(decoder, codes, panels + p * size, first + p, count - p, rows, results);
    }
}

#ifdef TILES
static constexpr int64_t TILE_INPUTS = LINE / sizeof(bfloat16);

// Rows as tiles of codes meet them: bfloat16, of which the upper, the middle and the lower bits of a float32 are three.
// Groups are filled up with zeros to whole tiles.
struct TurnedForTiles {
    const bfloat16* numbers;
    int64_t stride;
    int64_t parts;  // of a row
    const float* sums;
    int64_t groups, first, count;
};

template <typename T>
static constexpr int64_t PARTS = std::is_same_v<T, float> ? 3 : 1;

// The upper bits of each number, which are taken off it.
static inline void take_upper(Vec& x, bfloat16* to) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(int(0xFFFF0000)));
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    x = x - Vec{_mm512_castsi512_ps(bits)};
}

static inline float turn_group(const float* x, int64_t length, bfloat16* to, int64_t stride) {
    Vec sum = Vec::zero();
    over(0, length, [&](int64_t i, auto lanes) {
        Vec some = lanes.load(x + i);
        sum = sum + some;
        for (int part = 0; part < 3; ++part) take_upper(some, to + part * stride + i);
    });
    return sum.sum();
}

static inline float turn_group(const bfloat16* x, int64_t length, bfloat16* to, int64_t) {
    Vec sum = Vec::zero();
    over(0, length, [&](int64_t i, auto lanes) {
        const Vec some = lanes.load(x + i);
        sum = sum + some;
        some.store(to + i);
    });
    return sum.sum();
}

template <typename T>
static void turn_for_tiles(const Codes& codes, const T* x, const int64_t* order, bfloat16* to, int64_t stride,
                           float* sums) {
    T ordered[TILE_INPUTS];
    for (int64_t part = 0; part < PARTS<T>; ++part) {
        std::fill(to + part * stride, to + (part + 1) * stride, bfloat16{});
    }
    for (int64_t g = 0; g < codes.groups(); ++g) {
        const int64_t from = g * codes.group, length = codes.length(g);
        if (order) {
            sums[g] = 0;
            for (int64_t k = 0; k < length; k += TILE_INPUTS) {
                const int64_t count = std::min(TILE_INPUTS, length - k);
                for (int64_t i = 0; i < count; ++i) ordered[i] = x[order[from + k + i]];
                sums[g] += turn_group(ordered, count, to + k, stride);
            }
        } else {
            sums[g] = turn_group(x + from, length, to, stride);
        }
        to += parts(length, TILE_INPUTS) * TILE_INPUTS;
    }
}

// Tiles are made of codes some time before they are loaded: one that was just stored is waited for, three times as long
// as making it takes. They wait in a ring of places for a tile of each panel, which is small beside the cache.
static constexpr int64_t TILE_SIZE = TILE_INPUTS * PANEL;

// The place of the next tile's codes in a panel.
struct TileCursor {
    const Codes& codes;
    const uint8_t* step;
    int64_t group = 0, input = 0;  // of the group

    // Makes the tile of each panel, each of which is followed by work(panel).
    template <int PANELS, typename Decoder, typename Work>
    inline void make(const Decoder& decoder, const Offsets<PANELS>& offset, bfloat16* to, const Work& work) {
        const int64_t count = codes.length(group) - input, steps = std::min<int64_t>(4, parts(count, STEP));
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; ++p) {
            const uint8_t* from = step + offset[p];
            bfloat16* tile = to + p * TILE_SIZE;
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i, from += Decoder::bytes, tile += STEP * PANEL) {
                if (i >= steps) break;
                _mm_prefetch(from + NEAR, _MM_HINT_T0);
                if constexpr (Decoder::bytes > 64) _mm_prefetch(from + NEAR + 64, _MM_HINT_T0);
                put_pairs(decoder, from, tile);
            }
            work(p);
        }
        step += steps * Decoder::bytes;
        input += TILE_INPUTS;
        if (count <= TILE_INPUTS) {
            ++group;
            input = 0;
        }
    }
};

// The sums of a panel begin anew, and those of the group before go to `sums`, if there was one: by then they are there.
template <int TILE>
static inline void begin_sums(float* sums) {
    if (sums) tile_store<TILE>(sums + TILE * TILE_ROWS * PANEL, LINE);
    tile_zero<TILE>();
}

// Work of a panel whose number is known in a loop that is unrolled alone.
template <int PANELS, int P = 0, typename Work>
static inline void for_panel(int panel, const Work& work) {
    if constexpr (P < PANELS) {
        if (P == panel) return work(std::integral_constant<int, P>{});
        for_panel<PANELS, P + 1>(panel, work);
    }
}

template <int COUNT, int TILE = 0>
static inline void store_tiles(float* sums) {
    if constexpr (TILE < COUNT) {
        tile_store<TILE>(sums + TILE * TILE_ROWS * PANEL, LINE);
        store_tiles<COUNT, TILE + 1>(sums);
    }
}

// Four tiles of sums: one or two tiles of rows (HEIGHT) with four or two panels, of which some are there.
template <int HEIGHT, typename Decoder>
static void multiply_tiled_codes(const Decoder& decoder, const Codes& codes, const uint8_t* panels, int64_t number,
                                 int64_t there, const TurnedForTiles& rows, bfloat16* ring, const Results& results) {
    static constexpr const bfloat16* type = nullptr;
    static constexpr int PANELS = 4 / HEIGHT, LAG = HEIGHT, RING = 2 * HEIGHT;
    const int64_t stride = rows.stride * sizeof(bfloat16), groups = codes.groups();
    const auto offset = offsets<PANELS>(codes, there);
    alignas(64) float sums[2][4 * TILE_ROWS * PANEL], totals[HEIGHT * TILE_ROWS][PANELS * PANEL];
    std::fill(totals[0], totals[rows.count], 0.0f);
    // Adds a group's sums to the results, a group after they were stored.
    const auto add = [&](int64_t g) {
        for (int p = 0; p < PANELS; ++p) {
            const PanelScales own{codes, panels + offset[p]};
            const Vec scale = own.scale(g, 0), whole = scale * Vec::all(decoder.factor);
            const Vec shift = codes.shifts == SHIFTS_NONE ? Vec::zero() : own.shift(g, 0, scale);
            const float* from = sums[g % 2] + p * TILE_ROWS * PANEL;
            const float* sums_of_x = rows.sums + g;
            const auto add_to = [&](float* to, Vec sum) {
                Vec total = fma(whole, sum, Vec::load(to + p * PANEL));
                if (codes.shifts != SHIFTS_NONE) total = fma(shift, Vec::all(*sums_of_x), total);
                sums_of_x += groups;
                total.store(to + p * PANEL);
            };
            if (rows.parts == 1) {
                const int64_t first = std::min(rows.count, TILE_ROWS);
                for (int64_t r = 0; r < first; ++r) add_to(totals[r], Vec::load(from + r * PANEL));
                from += (PANELS - 1) * TILE_ROWS * PANEL;
                for (int64_t r = first; r < rows.count; ++r) add_to(totals[r], Vec::load(from + r * PANEL));
            } else {
                // Parts of a row may be in both tiles of rows.
                const auto part = [&](int64_t row) {
                    return Vec::load(from + (row + (row < TILE_ROWS ? 0 : (PANELS - 1) * TILE_ROWS)) * PANEL);
                };
                for (int64_t r = 0; r < rows.count; ++r) {
                    add_to(totals[r], part(3 * r) + (part(3 * r + 1) + part(3 * r + 2)));
                }
            }
        }
    };
    // A software pipeline: in round `tile`, the tile LAG rounds ahead is made of its codes, in vector registers, while
    // tile `tile` is multiplied by the tile unit. The first LAG rounds only make, the last ones only multiply; a ring of
    // twice LAG places keeps what is made apart from what is loaded. Sums go out in the same manner: those of a group
    // are stored when the next group begins, into one of two buffers in turn, and added to the totals when that group
    // has ended, since what was just stored is waited for.
    const auto place = [&](int64_t tile) { return ring + tile % RING * PANELS * TILE_SIZE; };
    TileCursor cursor{codes, panels + codes.codes_at()};
    const char* x = (const char*)rows.numbers;
    for (int64_t tile = -LAG, g = 0, k = 0; g < groups; ++tile) {
        if (tile >= 0) {
            tile_load<ROW_TILE>(x, stride);
            if constexpr (HEIGHT > 1) tile_load<ROW_TILE + 1>(x + TILE_ROWS * stride, stride);
        }
        const auto multiply = [&](auto panel) {
            constexpr int P = panel, WEIGHTS = WEIGHT_TILE + P % 2;
            if (tile < 0) return;
            if (k == 0) {
                begin_sums<P>(g ? sums[(g - 1) % 2] : nullptr);
                if constexpr (HEIGHT > 1) begin_sums<PANELS + P>(g ? sums[(g - 1) % 2] : nullptr);
            }
            tile_load<WEIGHTS>(place(tile) + P * TILE_SIZE, LINE);
            tile_multiply<P, ROW_TILE, WEIGHTS>(type);
            if constexpr (HEIGHT > 1) tile_multiply<PANELS + P, ROW_TILE + 1, WEIGHTS>(type);
        };
        if (cursor.group < groups) {
            cursor.make<PANELS>(decoder, offset, place(tile + LAG), [&](int p) { for_panel<PANELS>(p, multiply); });
        } else {
            for (int p = 0; p < PANELS; ++p) for_panel<PANELS>(p, multiply);
        }
        if (tile < 0) continue;
        x += LINE;
        k += TILE_INPUTS;
        if (k >= codes.length(g)) {
            if (g > 1) add(g - 2);
            ++g;
            k = 0;
        }
    }
    store_tiles<4>(sums[(groups - 1) % 2]);
    if (groups > 1) add(groups - 2);
    add(groups - 1);
    for (int64_t r = 0; r < rows.count; ++r) {
        results.finish(results.kind, totals[r], rows.first + r, number * PANEL, PANELS * PANEL);
    }
}

// Panels [first, first + count) with rows of one or two tiles.
template <int HEIGHT, typename Decoder>
static void multiply_tiled_rows(const Decoder& decoder, const Codes& codes, const uint8_t* panels, int64_t first,
                                int64_t count, const TurnedForTiles& rows, bfloat16* ring, const Results& results) {
    constexpr int PANELS = 4 / HEIGHT;
    Tiles registers;
    registers.configure(HEIGHT, PANELS, rows.count * rows.parts - (HEIGHT - 1) * TILE_ROWS);
    for (int64_t p = 0; p < count; p += PANELS) {
        multiply_tiled_codes<HEIGHT>(decoder, codes, panels + p * codes.panel_bytes(), first + p, count - p, rows, ring,
                                     results);
    }
}
#endif

template <typename T>
static void finish_floats(const void* kind, const float* sums, int64_t row, int64_t output, int64_t count) {
    static_cast<const Floats<T>*>(kind)->finish(sums, row, output, count);
}

#include "grouped_parts.h"

// All rows with all codes, as they are.
template <typename T, typename Decoder>
static void by_codes(const Decoder& decoder, const Codes& codes, const uint8_t* packed, const int64_t* order,
                     const Floats<T>& kind, int64_t threads) {
    const int64_t stride = codes.filled(STEP) + 16, groups = codes.groups(), size = codes.panel_bytes();
    auto numbers = scratch<float>(kind.m * stride);
    auto sums = scratch<float>(kind.m * groups);
    share(kind.m, kind.m * kind.inputs < SMALL ? 1 : threads, [&](int64_t row, int64_t) {
        turn(decoder, codes, kind.x + row * kind.inputs, order, numbers.get() + row * stride, sums.get() + row * groups);
    });
    const int64_t strips = parts(kind.m, MOST_AT_ONCE), panels = parts(kind.outputs, PANEL);
    const int64_t some = parts(parts(panels, TASKS * threads), 4) * 4;
    if (kind.m * kind.inputs * kind.outputs < SMALL) threads = 1;
    const Results results{finish_floats<T>, &kind};
    share(parts(panels, some), threads, [&](int64_t task, int64_t) {
        const int64_t last = std::min(panels, (task + 1) * some);
        for (int64_t p = task * some; p < last; p += 4) {
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t from = s * kind.m / strips, to = (s + 1) * kind.m / strips;
                const TurnedRows rows{numbers.get() + from * stride, stride, sums.get() + from * groups, groups, from,
                                      to - from};
                multiply_rows(decoder, codes, packed + p * size, p, std::min<int64_t>(4, last - p), rows, results);
            }
        }
    });
}

#ifdef TILES
template <typename T, typename Decoder>
static void by_tiled_codes(const Decoder& decoder, const Codes& codes, const uint8_t* packed, const int64_t* order,
                           const Floats<T>& kind, int64_t threads) {
    // A line more, so that rows beside each other do not meet in the cache.
    const int64_t stride = codes.filled(TILE_INPUTS) + TILE_INPUTS, own = PARTS<T> * stride, groups = codes.groups();
    auto numbers = scratch<bfloat16>(kind.m * own);
    auto sums = scratch<float>(kind.m * groups);
    share(kind.m, kind.m * kind.inputs < SMALL ? 1 : threads, [&](int64_t row, int64_t) {
        turn_for_tiles(codes, kind.x + row * kind.inputs, order, numbers.get() + row * own, stride,
                       sums.get() + row * groups);
    });
    const int64_t strips = parts(kind.m, MOST_TILED / PARTS<T>), panels = parts(kind.outputs, PANEL);
    const int64_t some = parts(parts(panels, TASKS * threads), 4) * 4;
    if (kind.m * kind.inputs * kind.outputs < SMALL) threads = 1;
    const Results results{finish_floats<T>, &kind};
    share(parts(panels, some), threads, [&](int64_t task, int64_t) {
        alignas(64) bfloat16 tiles[8 * TILE_SIZE] = {};
        const int64_t last = std::min(panels, (task + 1) * some);
        for (int64_t p = task * some; p < last; p += 4) {
            const uint8_t* panel = packed + p * codes.panel_bytes();
            for (int64_t s = 0; s < strips; ++s) {
                const int64_t from = s * kind.m / strips, to = (s + 1) * kind.m / strips, four = std::min<int64_t>(4, last - p);
                const TurnedForTiles rows{numbers.get() + from * own, stride, PARTS<T>, sums.get() + from * groups, groups, from, to - from};
                if ((to - from) * PARTS<T> > TILE_ROWS) {
                    multiply_tiled_rows<2>(decoder, codes, panel, p, four, rows, tiles, results);
                } else {
                    multiply_tiled_rows<1>(decoder, codes, panel, p, four, rows, tiles, results);
                }
            }
        }
    });
}
#endif

// The numbers of a panel, from its first to its last input, as dense panels have them; up to STEP - 1 more are written.
static inline void put_numbers(float* to, int64_t input, const Vec (&numbers)[PANEL / Vec::width]) {
    for (int h = 0; h < PANEL / Vec::width; ++h) numbers[h].store(to + input * PANEL + h * Vec::width);
}

template <typename Decoder, typename Put>
static void unpack(const Decoder& decoder, const Codes& codes, const uint8_t* panel, const Put& put) {
    constexpr int HALVES = PANEL / Vec::width;
    const PanelScales own{codes, panel};
    const uint8_t* step = panel + codes.codes_at();
    for (int64_t g = 0, input = 0; g < codes.groups(); ++g) {
        Vec scales[HALVES], shifts[HALVES];
        for (int h = 0; h < HALVES; ++h) {
            const Vec scale = own.scale(g, h * Vec::width);
            scales[h] = scale * Vec::all(decoder.factor);
            shifts[h] = codes.shifts == SHIFTS_NONE ? Vec::zero() : own.shift(g, h * Vec::width, scale);
        }
        const int64_t end = input + codes.length(g);
        for (; input < end; input += STEP, step += Decoder::bytes) {
            Vec numbers[STEP][HALVES];
#pragma GCC unroll 2
            for (int h = 0; h < HALVES; ++h) {
                const auto line = Decoder::load(step, h);
#pragma GCC unroll 8
                for (int j = 0; j < STEP; ++j) {
                    Vec number = decoder.number(line, j);
                    if (Decoder::times(j) != 1) number = number * Vec::all(1 / Decoder::times(j));
                    if (decoder.offset != 0) number = number - Vec::all(decoder.offset);
                    numbers[Decoder::input(j)][h] = rounded_product(number, scales[h]) + shifts[h];
                }
            }
            put(input, std::min(STEP, end - input), numbers);
        }
        input = end;
    }
}

// A dense panel in float32.
template <typename Decoder>
static void unpack_panel(const Decoder& decoder, const Codes& codes, const uint8_t* panel, float* to) {
    unpack(decoder, codes, panel, [&](int64_t input, int64_t, const auto& numbers) {
#pragma GCC unroll 8
        for (int64_t j = 0; j < STEP; ++j) put_numbers(to, input + j, numbers[j]);
    });
    std::fill(to + codes.inputs * PANEL, to + panel_size<float>(codes.inputs), 0.0f);
}

// Stores two inputs of a panel as pairs of bfloat16.
static inline void put_pair(bfloat16* to, const float* first, const float* second) {
    for (int64_t o = 0; o < PANEL; o += Vec::width) {
        const Vec a = Vec::load(first + o), b = Vec::load(second + o);
#ifdef __AVX512BF16__
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
        const __m512i halves = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        _mm512_storeu_si512(to, _mm512_permutexvar_epi16(halves, both));
#else
        for (int64_t i = 0; i < Vec::width; ++i) {
            put(to + 2 * (o + i), first[o + i]);
            put(to + 2 * (o + i) + 1, second[o + i]);
        }
#endif
    }
}

template <typename Decoder>
static void unpack_panel(const Decoder& decoder, const Codes& codes, const uint8_t* panel, bfloat16* to) {
    static constexpr int64_t CHUNK = 64;
    alignas(64) float chunk[(CHUNK + 2 * STEP) * PANEL];
    int64_t held = 0;
    const auto flush = [&] {
        int64_t i = 0;
        for (; i + 2 <= held; i += 2, to += 2 * PANEL) put_pair(to, chunk + i * PANEL, chunk + (i + 1) * PANEL);
        if (i < held) std::copy_n(chunk + i * PANEL, PANEL, chunk);
        held -= i;
    };
    unpack(decoder, codes, panel, [&](int64_t, int64_t count, const auto& numbers) {
#pragma GCC unroll 8
        for (int64_t j = 0; j < STEP; ++j) put_numbers(chunk, held + j, numbers[j]);
        held += count;
        if (held >= CHUNK) flush();
    });
    std::fill(chunk + held * PANEL, chunk + (held + 1) * PANEL, 0.0f);
    held += held % 2;
    flush();
    const int64_t whole = parts(codes.inputs, 2) * 2;
    std::fill(to, to + (padded<bfloat16>(codes.inputs) - whole) * PANEL, bfloat16{});
}

// Calls work(first panel, count, dense panels, row, rows) for all panels with all rows of [0, m).
template <typename W, typename Decoder, typename Work>
static void with_dense_panels(const Decoder& decoder, const Codes& codes, const uint8_t* packed, int64_t chunk,
                              int64_t threads, const Work& work) {
    const int64_t panels = parts(codes.outputs, PANEL), size = panel_size<W>(codes.inputs);
    const int64_t own = chunk * size + STEP * PANEL;
    auto dense = scratch<W>(threads * own);
    share(parts(panels, chunk), threads, [&](int64_t task, int64_t thread) {
        const int64_t first = task * chunk, count = std::min(chunk, panels - first);
        W* to = dense.get() + thread * own;
        for (int64_t p = 0; p < count; ++p) {
            unpack_panel(decoder, codes, packed + (first + p) * codes.panel_bytes(), to + p * size);
        }
        work(first, count, to);
    });
}

template <typename T, typename W, typename Decoder>
static void by_dense_panels(const Decoder& decoder, const Codes& codes, const uint8_t* packed, const Floats<T, W>& kind,
                            int64_t threads) {
    using Kind = Floats<T, W>;
    const int64_t inputs = padded<W>(kind.inputs), stride = inputs + 64 / sizeof(typename Kind::Row);
    auto rows = scratch<typename Kind::Row>(kind.m * stride);
    share(kind.m, threads, [&](int64_t row, int64_t) { kind.fill(rows.get() + row * stride, row); });
    with_dense_panels<W>(decoder, codes, packed, 2 * WIDE, threads, [&](int64_t first, int64_t count, const W* dense) {
        for (int64_t row = 0; row < kind.m; row += BLOCK_ROWS) {
            const int64_t some = std::min(BLOCK_ROWS, kind.m - row);
            multiply_block<Kind>(kind, {rows.get() + row * stride, stride, row, some},
                                 {dense, panel_size<W>(kind.inputs), first, count}, inputs);
        }
    });
}

#ifdef TILES
template <typename Decoder>
static void by_dense_tiles(const Decoder& decoder, const Codes& codes, const uint8_t* packed,
                           const Floats<bfloat16>& kind, int64_t threads) {
    const int64_t inputs = padded<bfloat16>(kind.inputs), bytes = inputs * sizeof(bfloat16);
    auto copied = scratch<bfloat16>(inputs == kind.inputs ? 0 : kind.m * inputs);
    const bfloat16* rows = inputs == kind.inputs ? kind.x : copied.get();
    if (inputs != kind.inputs) {
        share(kind.m, threads, [&](int64_t row, int64_t) {
            bfloat16* to = copied.get() + row * inputs;
            std::fill(std::copy_n(kind.x + row * kind.inputs, kind.inputs, to), to + inputs, bfloat16{});
        });
    }
    const int64_t fitting = std::max<int64_t>(1, ROWS_BYTES / (bytes * MOST_TILED)) * MOST_TILED;
    const int64_t chunk = 4 * panel_size<bfloat16>(codes.inputs) * 2 > ROWS_BYTES ? 2 : 4;
    with_dense_panels<bfloat16>(decoder, codes, packed, chunk, threads,
                                [&](int64_t first, int64_t count, const bfloat16* dense) {
        for (int64_t row = 0; row < kind.m; row += fitting) {
            multiply_tiled(kind, {rows, bytes}, row, std::min(fitting, kind.m - row), dense, first, first + count);
        }
    });
}
#endif

// Rows with their columns in the order of the codes.
template <typename T>
static std::unique_ptr<T[], Freed> in_order(const Floats<T>& kind, const int64_t* order, int64_t threads) {
    auto rows = scratch<T>(kind.m * kind.inputs);
    share(kind.m, threads, [&](int64_t row, int64_t) {
        const T* from = kind.x + row * kind.inputs;
        T* to = rows.get() + row * kind.inputs;
        for (int64_t k = 0; k < kind.inputs; ++k) to[k] = from[order[k]];
    });
    return rows;
}

template <typename T, typename Decoder>
static void by_dense(const Decoder& decoder, const Codes& codes, const uint8_t* packed, const int64_t* order,
                     Floats<T> kind, int64_t threads) {
    std::unique_ptr<T[], Freed> ordered;
    if (order) {
        ordered = in_order(kind, order, threads);
        kind.x = ordered.get();
    }
    if constexpr (std::is_same_v<T, bfloat16>) {
#ifdef TILES
        if (tiles_permitted()) return by_dense_tiles(decoder, codes, packed, kind, threads);
#endif
#ifdef DOT_OF_PAIRS
        return by_dense_panels(decoder, codes, packed, kind, threads);
#endif
    }
    const Floats<T, float> wide{kind.x, kind.m, kind.inputs, kind.bias, kind.out, kind.outputs, kind.activated};
    by_dense_panels(decoder, codes, packed, wide, threads);
}

enum class Way { CODES, PARTS, TILED_CODES, DENSE };

// Rows up to which sums of parts are the fastest, without tiles and with them.
static constexpr int64_t FEW_PARTED = Vec::width == 16 ? 8 : 4, FEW_PARTED_FOR_TILES = 2;

template <typename T>
static bool parted(const Codes& codes, int64_t m, bool tiles) {
#ifdef SUMS_OF_PARTS
    const bool whole = codes.code == UINT4 || codes.code == INT4;
    return std::is_same_v<T, bfloat16> && whole && m <= (tiles ? FEW_PARTED_FOR_TILES : FEW_PARTED);
#else
    return false;
#endif
}

template <typename T>
static Way way(const Codes& codes, int64_t m, bool one_way) {
#ifdef TILES
    if (tiles_permitted()) {
        if (one_way) return Way::TILED_CODES;
        if (parted<T>(codes, m, true)) return Way::PARTS;
        if (m == 1) return Way::CODES;
        if (std::is_same_v<T, float>) return Way::TILED_CODES;
        return m <= (codes.group < WIDE_GROUP ? FEW_FOR_TILES : FEW_OF_WIDE_GROUPS) ? Way::TILED_CODES : Way::DENSE;
    }
#endif
    if (!one_way && parted<T>(codes, m, false)) return Way::PARTS;
    return one_way || m <= FEW ? Way::CODES : Way::DENSE;
}

// `order`: int64 [inputs] or null; `one_way`: any number of rows meets the codes as they are.
KERNEL void linear_grouped(int64_t dtype, const void* x, int64_t m, int64_t code, int64_t inputs, int64_t outputs,
                           int64_t group, int64_t scales, int64_t shifts, const void* packed, const void* order,
                           const void* bias, void* out, int64_t activated, int64_t one_way, int64_t threads) {
    const Codes codes(code, inputs, outputs, group, scales, shifts);
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        const Way chosen = way<T>(codes, m, one_way);
        with_decoder(code, [&](const auto& decoder) {
            for (int64_t row = 0; row < m; row += WAVE) {
                const Floats<T> kind{(const T*)x + row * inputs, std::min(WAVE, m - row), inputs, (const T*)bias,
                                     (T*)out + row * outputs,    outputs,                 bool(activated)};
                const auto* panels = (const uint8_t*)packed;
                const auto* columns = (const int64_t*)order;
                if (chosen == Way::CODES) by_codes(decoder, codes, panels, columns, kind, threads);
#ifdef SUMS_OF_PARTS
                if constexpr (std::is_same_v<T, bfloat16>) {
                    if (chosen == Way::PARTS) by_parts(codes, panels, columns, kind, threads);
                }
#endif
                if (chosen == Way::DENSE) by_dense(decoder, codes, panels, columns, kind, threads);
#ifdef TILES
                if (chosen == Way::TILED_CODES) by_tiled_codes(decoder, codes, panels, columns, kind, threads);
#endif
            }
        });
    });
}
