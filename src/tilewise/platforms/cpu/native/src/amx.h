// AMX: eight registers that are tiles of 16 lines, and their products.
//
// Rows are a tile of [16][numbers of a line], weights one of [numbers of a line / group][16][group], where a group is two
// bfloat16 or four int8; sums are [16][16]. Tiles of rows and of sums may have fewer rows. A product of bfloat16 is summed
// up in float32 for each row by itself: first numbers and second numbers of the pairs apart, then both, then with what
// was there before. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS.
#pragma once

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define TILES

#include <sys/syscall.h>
#include <unistd.h>

// Linux gives a process the registers when it asks for them, and this process' threads with it.
static inline bool tiles_permitted() {
    static constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool yes = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return yes;
}

// The layout that LDTILECFG reads.
struct alignas(64) TileConfig {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// Sums are in tiles 0 - 3, rows in 4 and 5, weights in 6 and 7.
static constexpr int ROW_TILE = 4, WEIGHT_TILE = 6;
static constexpr int64_t LINE = 64, TILE_ROWS = 16, TILE_BYTES = TILE_ROWS * LINE;

// This thread's tiles while it lives. Other libraries of the process use them too, each with its own configuration, and
// set theirs when they begin, as is done here.
class Tiles {
  public:
    ~Tiles() { asm volatile("tilerelease" ::: "memory"); }

    // Sets the shapes of `height` tiles of rows beside `panels`; the last tile has `last` rows.
    void configure(int height, int panels, int64_t last) {
        const int64_t wish = height * 256 + panels * 32 + last;
        if (wish == now_) return;
        now_ = wish;
        TileConfig config{};
        config.palette = 1;
        for (int t = 0; t < 8; ++t) {
            config.row_bytes[t] = LINE;
            config.rows[t] = TILE_ROWS;
        }
        config.rows[ROW_TILE + height - 1] = last;
        for (int p = 0; p < panels; ++p) config.rows[(height - 1) * panels + p] = last;
        asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
    }

  private:
    int64_t now_ = 0;
};

template <int TILE>
static inline __attribute__((always_inline)) void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

template <int TILE>
static inline __attribute__((always_inline)) void tile_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
static inline __attribute__((always_inline)) void tile_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

// sums += rows * weights
template <int SUMS, int ROWS, int WEIGHTS>
static inline __attribute__((always_inline)) void tile_multiply(const bfloat16*) {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(ROWS), "i"(WEIGHTS));
}
template <int SUMS, int ROWS, int WEIGHTS>
static inline __attribute__((always_inline)) void tile_multiply(const int8_t*) {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(ROWS), "i"(WEIGHTS));
}

#endif
