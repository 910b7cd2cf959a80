// Products with a packed matrix in float32 and bfloat16, summed up in float32 and rounded once.
#include "floats.h"
#include "tiles.h"

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
