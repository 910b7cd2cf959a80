// Products with a packed matrix in float32 and bfloat16, summed up in float32 and rounded once.
//
// bfloat16 comes in pairs of inputs, [inputs / 2][PANEL][2], as tiles of AMX (tiles.h) and AVX-512's dot product of pairs
// read them. Without either, a shift and a mask make two vectors of float32 of a vector of pairs, at hardly a cost.
#include <type_traits>

#include "gelu.h"
#include "packed.h"
#include "tiles.h"

template <typename T>
struct Floats {
#ifdef DOT_OF_PAIRS
    using Row = T;
#else
    using Row = float;
#endif
    using Weight = T;
    using Sum = float;
    using Register = Vec;
    static constexpr bool once = false;
    static constexpr int64_t group = sizeof(float) / sizeof(T);
    static constexpr int64_t taken = group == 1 ? 4 : 2;

    const T* x;
    int64_t m, inputs;
    const T* bias;
    T* out;
    int64_t outputs;
    bool activated;  // by GELU

    void fill(Row* to, int64_t row) const {
        const T* from = x + row * inputs;
        if constexpr (std::is_same_v<Row, T>) {
            std::memcpy(to, from, inputs * sizeof(T));
        } else {
            FOR_VECTORS(i, inputs) store_at(to, i, inputs, load_at(from, i, inputs));
        }
        std::fill(to + inputs, to + padded<Weight>(inputs), Row{});
    }

    void finish(const float* sums, int64_t row, int64_t output, int64_t count) const {
        count = std::min(count, outputs - output);
        T* to = out + row * outputs + output;
        FOR_VECTORS(i, count) {
            Vec y = load_at(sums, i, count);
            if (bias) y = y + load_at(bias + output, i, count);
            store_at(to, i, count, activated ? gelu_of_stored<T>(y) : y);
        }
    }

    // One input after the other; the weights stay in registers while the rows meet them.
    template <int ROWS, int PANELS, int VECTORS>
    static inline void step(Vec (&sums)[ROWS][VECTORS], const Row* rows, int64_t stride, const T* weights,
                            int64_t panel) {
#pragma GCC unroll 4
        for (int64_t k = 0; k < taken; ++k) {
            Vec some[VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) {
                some[v] = load(weights + v * PANELS / VECTORS * panel, v % (VECTORS / PANELS), k);
                asm("" : "+v"(some[v].v));  // GCC would rather keep the rows in registers, and runs out of them.
            }
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) {
                Vec number = Vec::all(to_float(rows[r * stride + k]));
                asm("" : "+v"(number.v));
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(number, some[v], sums[r][v]);
            }
        }
    }

    // Vector v of a panel's weights for input k.
    static inline Vec load(const float* weights, int v, int64_t k) {
        return Vec::load(weights + k * PANEL + v * Vec::width);
    }
    static inline Vec load(const bfloat16* weights, int v, int64_t k) {
        const bfloat16* pairs = weights + (k / 2 * PANEL + v * Vec::width) * 2;
        return k % 2 ? odd(pairs) : even(pairs);
    }
};

#ifdef DOT_OF_PAIRS
template <>
template <int ROWS, int PANELS, int VECTORS>
inline void Floats<bfloat16>::step(Vec (&sums)[ROWS][VECTORS], const bfloat16* rows, int64_t stride,
                                   const bfloat16* weights, int64_t panel) {
    Lanes pairs[PANELS];
#pragma GCC unroll 8
    for (int p = 0; p < PANELS; ++p) {
        pairs[p] = (Lanes)_mm512_loadu_si512(weights + p * panel);
        asm("" : "+v"(pairs[p]));  // as above: in registers, so that a row's pair is read once for all panels
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
        int32_t pair;
        std::memcpy(&pair, rows + r * stride, 4);
        __m512i number = _mm512_set1_epi32(pair);
        asm("" : "+v"(number));
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
            sums[r][p].v = _mm512_dpbf16_ps(sums[r][p].v, (__m512bh)number, (__m512bh)pairs[p]);
        }
    }
}
#endif

KERNEL void pack_linear(int64_t dtype, const void* matrix, int64_t first, int64_t count, int64_t inputs,
                        int64_t outputs, void* packed, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        const Part part{first, count, inputs, outputs};
        pack_panels<Floats<T>>(part, (T*)packed, threads, [&](int64_t o, int64_t k, int64_t some, T* to) {
            std::memcpy(to, (const T*)matrix + o * inputs + k, some * sizeof(T));
        });
    });
}

#ifdef TILES
// Rows are read where they are, unless they end within a tile.
static void linear_by_tiles(const Floats<bfloat16>& kind, const bfloat16* packed, int64_t threads) {
    const int64_t inputs = padded<bfloat16>(kind.inputs), bytes = inputs * sizeof(bfloat16);
    if (inputs == kind.inputs) return product_by_tiles(kind, {kind.x, bytes}, packed, threads);
    auto rows = scratch<bfloat16>(kind.m * inputs);
    share(kind.m, kind.m * inputs < SMALL ? 1 : threads, [&](int64_t row, int64_t) {
        bfloat16* to = rows.get() + row * inputs;
        std::fill(std::copy_n(kind.x + row * kind.inputs, kind.inputs, to), to + inputs, bfloat16{});
    });
    product_by_tiles(kind, {rows.get(), bytes}, packed, threads);
}
#endif

KERNEL void linear(int64_t dtype, const void* x, int64_t m, int64_t inputs, const void* packed, const void* bias,
                   void* out, int64_t outputs, int64_t activated, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Floats<T> kind{(const T*)x, m, inputs, (const T*)bias, (T*)out, outputs, bool(activated)};
#ifdef TILES
        if constexpr (std::is_same_v<T, bfloat16>) {
            if (tiles_permitted()) return linear_by_tiles(kind, (const T*)packed, threads);
        }
#endif
        product(kind, (const T*)packed, threads);
    });
}

// Inputs that a packed matrix has, in numbers of so many bytes.
KERNEL int64_t padded_inputs(int64_t inputs, int64_t bytes) {
    return bytes == 1 ? padded<int8_t>(inputs) : bytes == 2 ? padded<bfloat16>(inputs) : padded<float>(inputs);
}

// Which instructions products take here, of the ones that were compiled: 0 those of AVX2, 1 of AVX-512, 2 the dot products
// of AVX-512, 3 AMX; 4 AMX, which the system does not permit, so that AVX-512 does it.
KERNEL int64_t products_by() {
#ifdef TILES
    return tiles_permitted() ? 3 : 4;
#elif defined(__AVX512VNNI__)
    return 2;
#else
    return Vec::width == 16 ? 1 : 0;
#endif
}
