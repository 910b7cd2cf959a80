// Products by AMX: tiles of 16 rows times tiles of 16 outputs, each over a cache line of inputs.
//
// The panels of packed.h are such tiles, one behind the other: 16 lines of a line's inputs, in the groups that the
// instructions take. Rows are read where they are. Whatever the number of rows, a number of the result is summed up in
// one order: within a tile as the instructions do it, for each row by itself, and over the tiles from the first to the
// last. With AMX all products go this way, those of one row too: sums of floats would be others by other instructions.
#pragma once

#include "amx.h"
#include "packed.h"

#ifdef TILES

// Rows as they are multiplied, `stride` bytes from one to the next.
template <typename Row>
struct TileRows {
    const Row* first;
    int64_t stride;
};

static constexpr int64_t MOST_TILED = 2 * TILE_ROWS;          // rows at a time
static constexpr int64_t MOST_SUMS = 4 * TILE_ROWS * PANEL;   // of them
static constexpr int64_t ROWS_BYTES = int64_t(1) << 20;       // of a block of rows, which stays in a usual L2 cache

// Sums that wait to be finished: vectors do that while tiles are multiplied.
template <typename Kind>
struct Waiting {
    const Kind& kind;
    const typename Kind::Sum* sums = nullptr;
    int64_t row = 0, rows = 0, output = 0, outputs = 0;

    inline void finish(int64_t some) {
        for (; some > 0 && rows > 0; --some, --rows, ++row, sums += outputs) kind.finish(sums, row, output, outputs);
    }
};

// Lines that are fetched into the cache while tiles are multiplied: `count` in each step, `next` bytes apart.
struct Fetch {
    const char* from;
    int64_t count, next;
};

template <typename Kind, int HEIGHT, int PANELS>
static void multiply_tiles(const char* rows, int64_t stride, const char* weights, int64_t panel, int64_t steps,
                           Fetch read, Fetch written, Waiting<Kind>& waiting, typename Kind::Sum* sums) {
    static constexpr const typename Kind::Weight* type = nullptr;
    constexpr _mm_hint NEAR = HEIGHT == 1 ? _MM_HINT_T0 : _MM_HINT_T1;  // few rows are as fast as weights are there
    const int64_t some = parts(waiting.rows, steps);
    tile_zero<0>();
    if constexpr (HEIGHT * PANELS > 1) tile_zero<1>();
    if constexpr (HEIGHT * PANELS > 2) tile_zero<2>();
    if constexpr (HEIGHT * PANELS > 3) tile_zero<3>();
    for (int64_t k = 0; k < steps; ++k, rows += LINE, weights += TILE_BYTES) {
        tile_load<ROW_TILE>(rows, stride);
        tile_load<WEIGHT_TILE>(weights, LINE);
        tile_multiply<0, ROW_TILE, WEIGHT_TILE>(type);
        if constexpr (PANELS > 1) {
            tile_load<WEIGHT_TILE + 1>(weights + panel, LINE);
            tile_multiply<1, ROW_TILE, WEIGHT_TILE + 1>(type);
        }
        if constexpr (HEIGHT > 1) {
            tile_load<ROW_TILE + 1>(rows + TILE_ROWS * stride, stride);
            tile_multiply<PANELS, ROW_TILE + 1, WEIGHT_TILE>(type);
            if constexpr (PANELS > 1) tile_multiply<PANELS + 1, ROW_TILE + 1, WEIGHT_TILE + 1>(type);
        } else {
            if constexpr (PANELS > 2) {
                tile_load<WEIGHT_TILE>(weights + 2 * panel, LINE);
                tile_multiply<2, ROW_TILE, WEIGHT_TILE>(type);
            }
            if constexpr (PANELS > 3) {
                tile_load<WEIGHT_TILE + 1>(weights + 3 * panel, LINE);
                tile_multiply<3, ROW_TILE, WEIGHT_TILE + 1>(type);
            }
        }
        for (int64_t l = 0; l < read.count; ++l) {
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; ++p) _mm_prefetch(read.from + p * panel + l * LINE, NEAR);
        }
        read.from += read.next;
        for (int64_t l = 0; l < written.count; ++l, written.from += written.next) __builtin_prefetch(written.from, 1);
        waiting.finish(some);
    }
    waiting.finish(waiting.rows);
    constexpr int64_t to_next = PANELS * PANEL * 4;
    tile_store<0>(sums, to_next);
    if constexpr (PANELS > 1) tile_store<1>(sums + PANEL, to_next);
    if constexpr (HEIGHT > 1) {
        tile_store<PANELS>(sums + TILE_ROWS * PANELS * PANEL, to_next);
        if constexpr (PANELS > 1) tile_store<PANELS + 1>(sums + TILE_ROWS * PANELS * PANEL + PANEL, to_next);
    } else {
        if constexpr (PANELS > 2) tile_store<2>(sums + 2 * PANEL, to_next);
        if constexpr (PANELS > 3) tile_store<3>(sums + 3 * PANEL, to_next);
    }
}

// Rows [first, first + count) with panels [begin, end), the first of which is where `panels` points.
template <typename Kind>
static void multiply_tiled(const Kind& kind, TileRows<typename Kind::Weight> rows, int64_t first, int64_t count,
                           const typename Kind::Weight* panels, int64_t begin, int64_t end) {
    using Weight = typename Kind::Weight;
    const int64_t panel = panel_size<Weight>(kind.inputs) * sizeof(Weight), steps = panel / TILE_BYTES;
    const int64_t strips = parts(count, MOST_TILED), group = count <= TILE_ROWS ? 4 : 2;
    alignas(64) typename Kind::Sum sums[2][MOST_SUMS];
    Waiting<Kind> waiting{kind};
    Tiles tiles;
    int turn = 0;
    for (int64_t p = begin; p < end; p += group) {
        const char* weights = (const char*)panels + (p - begin) * panel;
        const int64_t width = std::min(group, end - p);
        for (int64_t s = 0; s < strips; ++s, turn ^= 1) {
            const int64_t row = first + s * MOST_TILED, height = std::min(MOST_TILED, count - s * MOST_TILED);
            const char* from = (const char*)rows.first + row * rows.stride;
            // Each strip fetches its share of the panels that come next, the only one what comes next in its own panels;
            // and the lines where its results go: they are far apart, so that storing would wait for each.
            const Fetch read = strips == 1 ? Fetch{weights + TILE_BYTES, TILE_ROWS, TILE_BYTES}
                                           : Fetch{weights + group * panel + s * TILE_ROWS / strips * LINE,
                                                   parts(TILE_ROWS, strips), TILE_BYTES};
            const Fetch written{(const char*)(kind.out + row * kind.outputs + p * PANEL), parts(height, steps),
                                kind.outputs * int64_t(sizeof(*kind.out))};
            auto call = [&](auto tall, auto wide) {
                tiles.configure(tall, wide, height - (tall - 1) * TILE_ROWS);
                multiply_tiles<Kind, tall, wide>(from, rows.stride, weights, panel, steps, read, written, waiting,
                                                sums[turn]);
            };
            using One = std::integral_constant<int, 1>;
            using Two = std::integral_constant<int, 2>;
            if (height > TILE_ROWS) {
                width == 1 ? call(Two{}, One{}) : call(Two{}, Two{});
            } else if (width <= 2) {
                width == 1 ? call(One{}, One{}) : call(One{}, Two{});
            } else {
                width == 3 ? call(One{}, std::integral_constant<int, 3>{}) : call(One{}, std::integral_constant<int, 4>{});
            }
            waiting.sums = sums[turn];
            waiting.row = row;
            waiting.rows = height;
            waiting.output = p * PANEL;
            waiting.outputs = width * PANEL;
        }
    }
    waiting.finish(waiting.rows);
}

// The product of rows that are there, [kind.m] of `rows.stride` bytes, filled up with zeros as the panels are.
template <typename Kind>
static void product_by_tiles(const Kind& kind, TileRows<typename Kind::Weight> rows, const typename Kind::Weight* packed,
                             int64_t threads) {
    if (kind.m == 0) return;
    using Weight = typename Kind::Weight;
    const int64_t panels = parts(kind.outputs, PANEL);
    const int64_t fitting = std::max<int64_t>(1, ROWS_BYTES / (rows.stride * MOST_TILED));
    const int64_t strips = parts(kind.m, MOST_TILED), blocks = parts(strips, fitting);
    const int64_t some = parts(parts(panels, parts(TASKS * threads, blocks)), 4) * 4, groups = parts(panels, some);
    if (kind.m * kind.inputs * kind.outputs < SMALL) threads = 1;
    share(blocks * groups, threads, [&](int64_t task, int64_t) {
        const int64_t block = task / groups, panel = task % groups * some;
        const int64_t from = block * strips / blocks * MOST_TILED, to = (block + 1) * strips / blocks * MOST_TILED;
        multiply_tiled(kind, rows, from, std::min(to, kind.m) - from, packed + panel * panel_size<Weight>(kind.inputs),
                       panel, std::min(panels, panel + some));
    });
}

#endif
