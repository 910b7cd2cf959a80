// Parts that all products with a packed matrix share: its cut into panels, and the loops around the innermost one.
//
// A matrix [outputs, inputs] is packed once, into panels of PANEL outputs. A panel holds one group of inputs after the
// other, [inputs / group][PANEL][group], so that a product reads it from front to back, whatever the number of rows.
// Inputs are filled up with zeros to a multiple of four, or of what a tile of AMX takes of them (tiles.h), outputs to whole
// panels.
//
// A number of the result is one sum over the inputs from the first to the last, however many rows there are and
// wherever its own stands: bit by bit, a row's results do not depend on what else is multiplied with it.
//
// A `Kind` says what is multiplied:
//   Row, Weight, Sum    what a row of x is turned into, what the matrix is stored in, what is summed up in
//   Register            a vector of sums
//   group, taken        inputs that lie side by side, and how many `step` takes at a time
//   once                whether turning a row takes so long that no row is turned twice
//   fill(...)           turns a row of x into Row, `padded(inputs)` of them
//   step<...>(...)      adds the products of a few inputs to the sums
//   finish(...)         turns sums into results
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "amx.h"
#include "simd.h"
#include "threads.h"

static constexpr int64_t PANEL = 16;

// Rows that are turned into `Row` at a time, for all panels of a task.
static constexpr int64_t BLOCK_ROWS = 96;
// Tasks for each thread, at least: threads that are held up take fewer.
static constexpr int64_t TASKS = 16;
// Products of fewer numbers are not worth waking threads for.
static constexpr int64_t SMALL = 65536;

// Registers for sums are 12 of AVX2's 16, 24 of AVX-512's 32. Fewer rows take more panels at a time, since a sum has to
// wait for the one before it. Where there are tiles, this is for a system that refuses them alone: fewer kinds of loops
// are compiled in two thirds of the time.
static constexpr int WIDE = Vec::width / 8;
#ifdef TILES
static constexpr int MOST_ROWS = 4;
#else
static constexpr int MOST_ROWS = 6 * WIDE;
#endif
static constexpr int panels_at_once(int rows) { return (rows == 1 ? 4 : rows <= 3 ? 2 : 1) * WIDE; }

static constexpr int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Inputs that a matrix of such weights has when it is packed, and weights of a panel.
template <typename Weight>
static inline int64_t padded(int64_t inputs) {
#ifdef TILES
    constexpr int64_t together = LINE / sizeof(Weight);
#else
    constexpr int64_t together = 4;
#endif
    return parts(inputs, together) * together;
}
template <typename Weight>
static inline int64_t panel_size(int64_t inputs) {
    return padded<Weight>(inputs) * PANEL;
}

struct Freed {
    void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
static std::unique_ptr<T[], Freed> scratch(int64_t count) {
    void* memory = std::aligned_alloc(64, parts(count * sizeof(T), 64) * 64);
    if (!memory) throw std::bad_alloc();
    return std::unique_ptr<T[], Freed>(static_cast<T*>(memory));
}

// Asks for pages of megabytes, which are found faster than those of 4 KB: weights are read from front to back, once a
// token. Whole pages alone, so that neighbours keep what they have; a system without large ones does nothing.
static inline void prefer_large_pages(void* from, size_t bytes) {
#ifdef __linux__
    const uintptr_t page = sysconf(_SC_PAGESIZE), start = parts(uintptr_t(from), page) * page;
    const uintptr_t stop = (uintptr_t(from) + bytes) / page * page;
    if (stop > start) madvise((void*)start, stop - start, MADV_HUGEPAGE);
#endif
}

// Some outputs of a matrix. Only the last ones may end within a panel.
struct Part {
    int64_t first;
    int64_t count;
    int64_t inputs;
    int64_t outputs;  // of the whole matrix
};

// Packs a part, of which read(output, input, count, to) gives `count` weights of an output, counted from the part's
// first, from an input on, which is a multiple of CHUNK. `packed` is where the whole matrix goes.
template <typename Kind, typename Read>
static void pack_panels(Part part, typename Kind::Weight* packed, int64_t threads, Read read) {
    using Weight = typename Kind::Weight;
    static constexpr int64_t CHUNK = 512, GAP = 64 / sizeof(Weight), GROUP = Kind::group;
    const int64_t inputs = part.inputs, size = panel_size<Weight>(inputs);
    prefer_large_pages(packed, parts(part.outputs, PANEL) * size * sizeof(Weight));
    share(parts(part.count, PANEL), threads, [&](int64_t panel, int64_t) {
        // Rows of a matrix are a power of two apart mostly, and would meet in the cache.
        Weight rows[PANEL][CHUNK + GAP] = {};
        Weight* to = packed + (part.first / PANEL + panel) * size;
        const int64_t first = panel * PANEL, count = std::min(PANEL, part.count - first);
        for (int64_t k = 0; k < padded<Weight>(inputs); k += CHUNK) {
            const int64_t read_now = std::min(CHUNK, inputs - k), whole = std::min(CHUNK, padded<Weight>(inputs) - k);
            for (int64_t o = 0; o < count; ++o) {
                read(first + o, k, read_now, rows[o]);
                std::fill(rows[o] + read_now, rows[o] + whole, Weight{});
            }
            for (int64_t i = 0; i < whole; i += GROUP) {
                for (int64_t o = 0; o < PANEL; ++o, to += GROUP) std::memcpy(to, &rows[o][i], GROUP * sizeof(Weight));
            }
        }
    });
}

// Rows of x as they are multiplied.
template <typename Kind>
struct Strip {
    const typename Kind::Row* rows;
    int64_t stride;
    int64_t first;
    int64_t count;
};

// Panels beside each other.
template <typename Kind>
struct Panels {
    const typename Kind::Weight* weights;
    int64_t size;
    int64_t first;
    int64_t count;
};

// Weights that are fetched into the cache while others are multiplied: in each step some lines of each panel.
//
// Few rows are multiplied as fast as the memory is read. Of more, the first strip would wait for the memory while the
// others leave it idle, so each of them fetches its share of the panels that come next. Of many, the first one does not
// count, and fetching costs more than it saves. Few rows read ahead in the panels that they are in, and int8 alone: its
// lines take more instructions, so that fewer of them are waited for at a time.
template <typename Kind>
struct Ahead {
    static constexpr int64_t STRIPS = 8;  // at most
    static constexpr int64_t NEAR = 512;
    static constexpr int64_t BYTES = PANEL * Kind::taken * sizeof(typename Kind::Weight);  // of a panel, in a step
    static constexpr int64_t LINES = parts(BYTES, 64);

    const char* from;
    int64_t stride;  // from a line to the next
    int64_t panel;   // from a panel to the next

    // Tells whether so many panels at once, meeting so many strips, are worth it.
    static bool pays(int64_t panels, int64_t strips) {
        return panels > WIDE ? sizeof(typename Kind::Weight) == 1 : strips <= STRIPS;
    }

    static Ahead of(const Panels<Kind>& panels, int64_t strip, int64_t strips) {
        const char* now = (const char*)panels.weights;
        const int64_t panel = panels.size * sizeof(*panels.weights);
        if (panels.count > WIDE) return {now + NEAR, BYTES / LINES, panel};
        return {now + panels.count * panel + strip * panel / strips, BYTES / LINES / strips, panel};
    }

    template <int PANELS>
    inline void step() {
#pragma GCC unroll 8
        for (int l = 0; l < LINES; ++l, from += stride)
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) _mm_prefetch(from + p * panel, _MM_HINT_T1);
    }
};

struct NothingAhead {
    template <int PANELS>
    inline void step() {}
};

template <typename Kind, int ROWS, int PANELS, typename Fetch>
static void multiply(const Kind& kind, Strip<Kind> strip, Panels<Kind> panels, int64_t inputs, Fetch ahead) {
    constexpr int VECTORS = PANELS * PANEL / Kind::Register::width;
    typename Kind::Register sums[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = Kind::Register::zero();
    const auto* rows = strip.rows;
    const auto* weights = panels.weights;
    for (int64_t k = 0; k < inputs; k += Kind::taken) {
        ahead.template step<PANELS>();
        Kind::template step<ROWS, PANELS>(sums, rows, strip.stride, weights, panels.size);
        rows += Kind::taken;
        weights += Kind::taken * PANEL;
    }
    alignas(64) typename Kind::Sum tile[ROWS][PANELS * PANEL];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[r][v].store(&tile[r][v * Kind::Register::width]);
    for (int r = 0; r < ROWS; ++r) kind.finish(tile[r], strip.first + r, panels.first * PANEL, PANELS * PANEL);
}

// Multiplies as many rows as the strip has, by all panels at once where they are as many as fit.
template <typename Kind, typename Fetch, int ROWS = MOST_ROWS>
static void multiply_strip(const Kind& kind, const Strip<Kind>& strip, const Panels<Kind>& panels, int64_t inputs,
                           const Fetch& ahead) {
    if constexpr (ROWS > 1) {
        if (strip.count < ROWS) return multiply_strip<Kind, Fetch, ROWS - 1>(kind, strip, panels, inputs, ahead);
    }
    if (panels.count == panels_at_once(ROWS)) {
        return multiply<Kind, ROWS, panels_at_once(ROWS)>(kind, strip, panels, inputs, ahead);
    }
    for (int64_t p = 0; p < panels.count; ++p) {
        Panels<Kind> one{panels.weights + p * panels.size, panels.size, panels.first + p, 1};
        multiply<Kind, ROWS, 1>(kind, strip, one, inputs, ahead);
    }
}

// A block of rows with some panels: each panel meets all strips while it is in the cache.
template <typename Kind>
static void multiply_block(const Kind& kind, const Strip<Kind>& block, const Panels<Kind>& panels, int64_t inputs) {
    const int64_t strips = parts(block.count, MOST_ROWS), group = panels_at_once(parts(block.count, strips));
    for (int64_t p = 0; p < panels.count; p += group) {
        const Panels<Kind> some{panels.weights + p * panels.size, panels.size, panels.first + p,
                                std::min(group, panels.count - p)};
        for (int64_t s = 0; s < strips; ++s) {
            const int64_t from = s * block.count / strips, to = (s + 1) * block.count / strips;
            const Strip<Kind> strip{block.rows + from * block.stride, block.stride, block.first + from, to - from};
            if (Ahead<Kind>::pays(group, strips)) {
                multiply_strip(kind, strip, some, inputs, Ahead<Kind>::of(some, s, strips));
            } else {
                multiply_strip(kind, strip, some, inputs, NothingAhead{});
            }
        }
    }
}

template <typename Kind>
static void product(const Kind& kind, const typename Kind::Weight* packed, int64_t threads) {
    if (kind.m == 0) return;
    using Weight = typename Kind::Weight;
    const int64_t inputs = padded<Weight>(kind.inputs), size = panel_size<Weight>(kind.inputs);
    const int64_t panels = parts(kind.outputs, PANEL);
    // Rows are of equal length, and so far apart that neighbours do not meet in the cache.
    const int64_t stride = inputs + 64 / sizeof(typename Kind::Row);
    const int64_t height = std::min(kind.m, BLOCK_ROWS), blocks = parts(kind.m, height);
    const int64_t some = parts(parts(panels, parts(TASKS * threads, blocks)), 4 * WIDE) * 4 * WIDE;
    if (kind.m * kind.inputs * kind.outputs < SMALL) threads = 1;
    // Several blocks of rows are turned by each task for itself, which keeps what is turned in its cache.
    const bool turned = Kind::once || blocks == 1;
    auto rows = scratch<typename Kind::Row>((turned ? kind.m : threads * height) * stride);
    if (turned) {
        share(kind.m, kind.m * kind.inputs < SMALL ? 1 : threads,
              [&](int64_t row, int64_t) { kind.fill(rows.get() + row * stride, row); });
    }
    share(blocks * parts(panels, some), threads, [&](int64_t task, int64_t thread) {
        const int64_t row = task % blocks * height, panel = task / blocks * some;
        const int64_t count = std::min(height, kind.m - row);
        auto* own = rows.get() + (turned ? row : thread * height) * stride;
        for (int64_t r = 0; r < count && !turned; ++r) kind.fill(own + r * stride, row + r);
        multiply_block<Kind>(kind, {own, stride, row, count},
                             {packed + panel * size, size, panel, std::min(some, panels - panel)}, inputs);
    });
}
