// Attention without a matrix of scores: softmax goes along with the sums over keys (FlashAttention, arXiv 2205.14135).
//
// A piece of work is a block of query rows of one sequence (or tile) and one key/value head. All query heads that share
// that head are rows beside each other, so each key is read once for all of them. Keys come in blocks that begin at
// multiples of KEYS; of each, keys are transposed and values copied into the thread's scratch, as float32, whatever the
// cache has. A row's sums therefore run in one order that depends on nothing but its position and how many queries its
// sequence has in this step: few of them share out a long past among threads, in parts that begin at multiples of PART.
#include "simd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

static constexpr int64_t ROWS = 96;   // query rows whose scores are there at a time
static constexpr int64_t KEYS = 128;  // keys of a block
static constexpr int64_t PART = 256;  // keys of a part, where few rows have a long past
static constexpr int64_t FEW = 48;    // rows up to which that is done
static constexpr int64_t PANEL = 2 * Vec::width;
static constexpr int HEIGHT = 6;  // rows whose sums are in registers, times two vectors
static constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Numbers of queries, and of results, of a piece of work: with keys and scores they fill half of a usual L2 cache.
static constexpr int64_t PIECE = 4 * ROWS * 64;

static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Numbers from one block, token and head to the next.
struct Steps {
    int64_t block, token, head;
};

template <typename T>
struct Sequence {
    const T* query;
    T* out;
    const T* key;
    const T* value;
    const int64_t* blocks;
    int64_t queries, keys;
};

// What all sequences of a call have in common.
struct Shape {
    int64_t heads, kv_heads, width;
    Steps query, key, value;
    int64_t block_tokens;
    float scale;
    bool causal;
    int64_t window;      // tokens back that a query sees, itself included; 0 = all
    const float* sinks;  // a logit for each head, or null

    int64_t group() const { return heads / kv_heads; }
    int64_t padded() const { return up(width, PANEL); }
};

// A piece of work: rows of one key/value head, over keys [first, last).
struct Piece {
    int64_t sequence, head, row, rows, first, last;
    float* partial;  // where unfinished results go, or null
};

// A thread's own memory.
struct Scratch {
    float *query, *key, *value, *scores, *mixed, *most, *sum;

    static int64_t rows(int64_t padded) { return std::max(ROWS, PIECE / padded / ROWS * ROWS); }
    static int64_t numbers(int64_t width) {
        int64_t padded = up(width, PANEL), most = rows(padded);
        return 2 * most * padded + 2 * KEYS * padded + ROWS * KEYS + 2 * most;
    }
    Scratch(float* from, const Shape& shape) {
        auto take = [&](int64_t count) { return std::exchange(from, from + count); };
        int64_t padded = shape.padded(), most_rows = rows(padded);
        scores = take(ROWS * KEYS);
        value = take(KEYS * padded);
        key = take(KEYS * padded);
        mixed = take(most_rows * padded);
        query = take(most_rows * padded);
        most = take(most_rows);
        sum = take(most_rows);
    }
};

// scores[M][PANEL] = query[M][width] times a panel of keys [width][PANEL].
template <int M>
static void multiply_keys(const float* query, const float* panel, int64_t width, float* scores) {
    Vec sums[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = Vec::zero();
    for (int64_t d = 0; d < width; ++d) {
        Vec left = Vec::load(panel + d * PANEL), right = Vec::load(panel + d * PANEL + Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Vec factor = Vec::all(query[m * width + d]);
            sums[m][0] = fma(factor, left, sums[m][0]);
            sums[m][1] = fma(factor, right, sums[m][1]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0].store(scores + m * KEYS);
        sums[m][1].store(scores + m * KEYS + Vec::width);
    }
}

// mixed[M][PANEL of padded] += weights[M][keys] times a panel of values [keys][PANEL].
template <int M>
static void add_values(const float* weights, const float* panel, int64_t keys, int64_t padded, float* mixed) {
    Vec sums[M][2];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0] = Vec::load(mixed + m * padded);
        sums[m][1] = Vec::load(mixed + m * padded + Vec::width);
    }
    for (int64_t j = 0; j < keys; ++j) {
        Vec left = Vec::load(panel + j * PANEL), right = Vec::load(panel + j * PANEL + Vec::width);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            Vec factor = Vec::all(weights[m * KEYS + j]);
            sums[m][0] = fma(factor, left, sums[m][0]);
            sums[m][1] = fma(factor, right, sums[m][1]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        sums[m][0].store(mixed + m * padded);
        sums[m][1].store(mixed + m * padded + Vec::width);
    }
}

// Calls work(height, row) over all rows, in strips of up to HEIGHT that are as equal as can be.
template <typename Work>
static void by_strips(int64_t rows, Work work) {
    int64_t strips = (rows + HEIGHT - 1) / HEIGHT;
    for (int64_t strip = 0; strip < strips; ++strip) {
        int64_t row = rows * strip / strips;
        switch (rows * (strip + 1) / strips - row) {
            case 1: work(std::integral_constant<int, 1>{}, row); break;
            case 2: work(std::integral_constant<int, 2>{}, row); break;
            case 3: work(std::integral_constant<int, 3>{}, row); break;
            case 4: work(std::integral_constant<int, 4>{}, row); break;
            case 5: work(std::integral_constant<int, 5>{}, row); break;
            default: work(std::integral_constant<int, 6>{}, row);
        }
    }
}

static inline void transpose8(__m256 rows[8]) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// Eight keys into eight columns of a panel [width][PANEL].
template <typename T>
static void transpose_keys(const T* const keys[8], int64_t width, float* panel) {
    int64_t d = 0;
    for (; d + 8 <= width; d += 8) {
        __m256 rows[8];
        for (int i = 0; i < 8; ++i) rows[i] = load8(keys[i] + d);
        transpose8(rows);
        for (int i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (d + i) * PANEL, rows[i]);
    }
    for (; d < width; ++d) {
        for (int i = 0; i < 8; ++i) panel[d * PANEL + i] = to_float(keys[i][d]);
    }
}

template <typename T>
static void prefetch(const T* row, int64_t width) {
    for (int64_t d = 0; d < width; d += 64 / int64_t(sizeof(T))) _mm_prefetch((const char*)(row + d), _MM_HINT_T0);
}

// A row of values into its place of each panel.
template <typename T>
static void spread_value(const T* value, int64_t width, int64_t padded, float* to) {
    FOR_VECTORS(d, padded) {
        Vec some = d < width ? load_at(value, d, width) : Vec::zero();
        some.store(to + d / PANEL * KEYS * PANEL + d % PANEL);
    }
}

// Keys [first, first + count) of a head as panels of PANEL keys, and their values as panels of PANEL columns. Rows are
// far apart, often each on a page of its own: the next ones are on their way while eight are packed.
template <typename T>
static void pack(const Shape& shape, const Sequence<T>& sequence, int64_t head, int64_t first, int64_t count,
                 const Scratch& scratch) {
    const T *keys[KEYS + 8], *values[KEYS + 8];
    int64_t whole = up(count, PANEL);
    for (int64_t j = 0; j < whole + 8; ++j) {
        // A panel is filled up with any key; its scores will be hidden.
        int64_t key = first + std::min(j, count - 1), place = key % shape.block_tokens;
        int64_t block = sequence.blocks[key / shape.block_tokens];
        keys[j] = sequence.key + block * shape.key.block + place * shape.key.token + head * shape.key.head;
        values[j] = sequence.value + block * shape.value.block + place * shape.value.token + head * shape.value.head;
    }
    for (int64_t j = 0; j < whole; j += 8) {
        for (int64_t i = j + 8; i < j + 16; ++i) {
            prefetch(keys[i], shape.width);
            prefetch(values[i], shape.width);
        }
        transpose_keys(keys + j, shape.width, scratch.key + j / PANEL * PANEL * shape.width + j % PANEL);
        for (int64_t i = j; i < std::min(j + 8, count); ++i) {
            spread_value(values[i], shape.width, shape.padded(), scratch.value + i * PANEL);
        }
    }
}

// Scores of a row become weights; what was summed up before is scaled to the new maximum. Keys outside [from, to) are
// hidden. Exponents are of two: queries were multiplied by log2(e).
static void weigh(float* scores, int64_t count, int64_t from, int64_t to, float* mixed, int64_t padded, float& most,
                  float& sum) {
    int64_t whole = up(count, PANEL);
    std::fill(scores, scores + from, NOTHING);
    std::fill(scores + to, scores + whole, NOTHING);
    Vec highest = Vec::load(scores);
    FOR_VECTORS(j, whole) highest = max(highest, Vec::load(scores + j));
    float now = std::max(most, highest.max());
    if (now == NOTHING) {  // nothing to be seen yet
        std::fill(scores, scores + whole, 0.0f);
        return;
    }
    Vec total = Vec::zero(), shift = Vec::all(now);
    FOR_VECTORS(j, whole) {
        Vec weight = exp2(Vec::load(scores + j) - shift);
        weight.store(scores + j);
        total = total + weight;
    }
    if (now > most) {
        float before = std::exp2(most - now);
        FOR_VECTORS(d, padded) (Vec::load(mixed + d) * Vec::all(before)).store(mixed + d);
        sum *= before;
        most = now;
    }
    sum += total.sum();
}

// Rows [begin, begin + rows) of a piece over one block of keys.
static void over_block(const Shape& shape, const Piece& piece, int64_t begin, int64_t rows, int64_t first,
                       int64_t count, int64_t before, const Scratch& scratch) {
    int64_t width = shape.width, padded = shape.padded();
    for (int64_t panel = 0; panel < count; panel += PANEL) {
        by_strips(rows, [&](auto height, int64_t row) {
            multiply_keys<height>(scratch.query + (begin + row) * width, scratch.key + panel * width, width,
                                  scratch.scores + row * KEYS + panel);
        });
    }
    for (int64_t row = 0; row < rows; ++row) {
        int64_t own = begin + row, position = before + (piece.row + own) / shape.group();
        int64_t to = shape.causal ? std::clamp<int64_t>(position + 1 - first, 0, count) : count;
        int64_t from = shape.window ? std::clamp<int64_t>(position + 1 - shape.window - first, 0, to) : 0;
        weigh(scratch.scores + row * KEYS, count, from, to, scratch.mixed + own * padded, padded, scratch.most[own],
              scratch.sum[own]);
    }
    for (int64_t column = 0; column < padded; column += PANEL) {
        by_strips(rows, [&](auto height, int64_t row) {
            add_values<height>(scratch.scores + row * KEYS, scratch.value + column * KEYS, count, padded,
                               scratch.mixed + (begin + row) * padded + column);
        });
    }
}

// The rows of a piece over all of its keys: mixed, most and sum in the scratch.
template <typename T>
static void run(const Shape& shape, const Sequence<T>& sequence, const Piece& piece, const Scratch& scratch) {
    int64_t width = shape.width, padded = shape.padded(), group = shape.group();
    float factor = shape.scale * LOG2_E;
    for (int64_t r = 0; r < piece.rows; ++r) {
        int64_t query = (piece.row + r) / group, head = piece.head * group + (piece.row + r) % group;
        const T* from = sequence.query + query * shape.query.token + head * shape.query.head;
        float* to = scratch.query + r * width;
        FOR_VECTORS(d, width) store_at(to, d, width, load_at(from, d, width) * Vec::all(factor));
    }
    std::fill(scratch.mixed, scratch.mixed + piece.rows * padded, 0.0f);
    std::fill(scratch.most, scratch.most + piece.rows, NOTHING);
    std::fill(scratch.sum, scratch.sum + piece.rows, 0.0f);

    int64_t before = sequence.keys - sequence.queries;  // tokens before the first query, if causal
    for (int64_t first = piece.first; first < piece.last; first += KEYS) {
        int64_t count = std::min(KEYS, piece.last - first);
        pack(shape, sequence, piece.head, first, count, scratch);
        for (int64_t row = 0; row < piece.rows; row += ROWS) {
            over_block(shape, piece, row, std::min(ROWS, piece.rows - row), first, count, before, scratch);
        }
    }
}

// A row's sum over what was mixed, and the sink in it.
template <typename T>
static void finish(const Shape& shape, const Sequence<T>& sequence, int64_t kv_head, int64_t row, const float* mixed,
                   float most, float sum) {
    int64_t query = row / shape.group(), head = kv_head * shape.group() + row % shape.group();
    float scale = 1.0f;
    if (shape.sinks) {
        float sink = shape.sinks[head] * LOG2_E, now = std::max(most, sink);
        scale = std::exp2(most - now);
        sum = sum * scale + std::exp2(sink - now);
    }
    Vec factor = Vec::all(scale / sum);
    T* out = sequence.out + (query * shape.heads + head) * shape.width;
    FOR_VECTORS(d, shape.width) store_at(out, d, shape.width, Vec::load(mixed + d) * factor);
}

// Numbers of one unfinished row: mixed, most, sum.
static int64_t unfinished(const Shape& shape) { return shape.padded() + Vec::width; }

static void keep(const Shape& shape, const Piece& piece, const Scratch& scratch) {
    int64_t padded = shape.padded();
    for (int64_t r = 0; r < piece.rows; ++r) {
        float* to = piece.partial + r * unfinished(shape);
        std::copy_n(scratch.mixed + r * padded, padded, to);
        to[padded] = scratch.most[r];
        to[padded + 1] = scratch.sum[r];
    }
}

// Parts of a row's keys, in their order, into the first of them.
template <typename T>
static void merge(const Shape& shape, const Sequence<T>& sequence, int64_t head, int64_t row, float* first,
                  int64_t parts, int64_t step) {
    int64_t padded = shape.padded();
    for (int64_t part = 1; part < parts; ++part) {
        const float* next = first + part * step;
        float most = std::max(first[padded], next[padded]);
        if (most == NOTHING) continue;
        float ours = std::exp2(first[padded] - most), theirs = std::exp2(next[padded] - most);
        FOR_VECTORS(d, padded) {
            fma(Vec::load(next + d), Vec::all(theirs), Vec::load(first + d) * Vec::all(ours)).store(first + d);
        }
        first[padded] = most;
        first[padded + 1] = first[padded + 1] * ours + next[padded + 1] * theirs;
    }
    finish(shape, sequence, head, row, first, first[padded], first[padded + 1]);
}

// Rows of a piece of work: many, so that packing keys pays, yet enough pieces for all threads.
template <typename T>
static int64_t piece_rows(const Shape& shape, const std::vector<Sequence<T>>& sequences, int64_t threads) {
    int64_t rows = 0;
    for (const Sequence<T>& sequence : sequences) rows += sequence.queries * shape.heads;
    return std::clamp(up(rows / (4 * threads), ROWS), ROWS, Scratch::rows(shape.padded()));
}

// Keys that rows [row, row + rows) of a sequence see: from a multiple of KEYS on.
template <typename T>
static std::pair<int64_t, int64_t> seen(const Shape& shape, const Sequence<T>& sequence, int64_t row, int64_t rows) {
    if (!shape.causal) return {0, sequence.keys};
    int64_t before = sequence.keys - sequence.queries;
    int64_t first = before + row / shape.group(), last = before + (row + rows - 1) / shape.group();
    return {shape.window ? std::max<int64_t>(0, first + 1 - shape.window) / KEYS * KEYS : 0, last + 1};
}

struct Split {
    int64_t sequence, head, rows, parts;
    float* partial;
};

// Numbers that a sequence keeps until its parts are merged; 0 = it is not split.
template <typename T>
static int64_t split_numbers(const Shape& shape, const Sequence<T>& sequence) {
    int64_t rows = sequence.queries * shape.group();
    if (!shape.causal || rows > FEW || rows == 0) return 0;
    auto [first, last] = seen(shape, sequence, 0, rows);
    int64_t parts = (last - first + PART - 1) / PART;
    return parts > 1 ? shape.kv_heads * parts * rows * unfinished(shape) : 0;
}

// Sequences [begin, end) at once; `room` has space for what they keep.
template <typename T>
static void attend_some(const Shape& shape, const std::vector<Sequence<T>>& sequences, int64_t begin, int64_t end,
                        float* room, float* scratch, int64_t threads) {
    std::vector<Piece> pieces;
    std::vector<Split> splits;
    int64_t most = piece_rows(shape, sequences, threads);
    for (int64_t s = begin; s < end; ++s) {
        int64_t rows = sequences[s].queries * shape.group();
        bool split = split_numbers(shape, sequences[s]) > 0;
        for (int64_t head = 0; head < shape.kv_heads; ++head) {
            for (int64_t row = 0; row < rows; row += most) {
                int64_t height = std::min(most, rows - row);
                auto [first, last] = seen(shape, sequences[s], row, height);
                if (!split) {
                    pieces.push_back({s, head, row, height, first, last, nullptr});
                    continue;
                }
                int64_t parts = (last - first + PART - 1) / PART;
                splits.push_back({s, head, rows, parts, room});
                for (int64_t part = first; part < last; part += PART) {
                    pieces.push_back({s, head, row, height, part, std::min(last, part + PART), room});
                    room += rows * unfinished(shape);
                }
            }
        }
    }
    if (pieces.empty()) return;
#pragma omp parallel num_threads(int(std::min<int64_t>(threads, pieces.size())))
    {
        Scratch own(scratch + thread_number() * Scratch::numbers(shape.width), shape);
        // The longest come last in a sequence, and are best begun first.
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = int64_t(pieces.size()) - 1; i >= 0; --i) {
            const Piece& piece = pieces[i];
            const Sequence<T>& sequence = sequences[piece.sequence];
            run(shape, sequence, piece, own);
            if (piece.partial) {
                keep(shape, piece, own);
                continue;
            }
            for (int64_t r = 0; r < piece.rows; ++r) {
                finish(shape, sequence, piece.head, piece.row + r, own.mixed + r * shape.padded(), own.most[r],
                       own.sum[r]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < int64_t(splits.size()); ++i) {
            const Split& split = splits[i];
            int64_t step = split.rows * unfinished(shape);
            for (int64_t row = 0; row < split.rows; ++row) {
                merge(shape, sequences[split.sequence], split.head, row, split.partial + row * unfinished(shape),
                      split.parts, step);
            }
        }
    }
}

// Sequences in their order, as many at once as `room` numbers are enough for.
template <typename T>
static void attend(const Shape& shape, const std::vector<Sequence<T>>& sequences, int64_t room, float* scratch,
                   int64_t threads) {
    float* own = scratch + room;
    int64_t begin = 0, taken = 0, count = sequences.size();
    for (int64_t s = 0; s < count; ++s) {
        int64_t needed = split_numbers(shape, sequences[s]);
        if (taken + needed > room) {
            attend_some(shape, sequences, begin, s, scratch, own, threads);
            begin = s;
            taken = 0;
        }
        taken += needed;
    }
    attend_some(shape, sequences, begin, count, scratch, own, threads);
}

// Numbers of scratch for each thread.
KERNEL int64_t attention_scratch(int64_t width) { return Scratch::numbers(width); }

// Most numbers that one sequence keeps until its parts are merged.
KERNEL int64_t attention_room(int64_t rows, int64_t keys, int64_t kv_heads, int64_t width) {
    int64_t parts = (keys + PART - 1) / PART;
    return parts > 1 ? kv_heads * parts * std::min(rows, FEW) * (up(width, PANEL) + Vec::width) : 0;
}

// Queries [tiles, queries, heads, width], keys and values [tiles, keys, heads, width], the result without gaps; `steps`
// are those of query, key and value.
KERNEL void dense_attention(int64_t dtype, const void* query, const void* key, const void* value, void* out,
                            const Steps* steps, int64_t tiles, int64_t queries, int64_t keys, int64_t heads,
                            int64_t width, float scale, float* scratch, int64_t threads) {
    static const int64_t whole = 0;  // a tile is a block of its own
    Shape shape{heads, heads, width, steps[0], steps[1], steps[2], keys, scale, false, 0, nullptr};
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        std::vector<Sequence<T>> sequences;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            sequences.push_back({(const T*)query + tile * steps[0].block, (T*)out + tile * queries * heads * width,
                                 (const T*)key + tile * steps[1].block, (const T*)value + tile * steps[2].block, &whole,
                                 queries, keys});
        }
        attend(shape, sequences, 0, scratch, threads);
    });
}

// query [N, heads, width] over the keys and values of a cache; sequence s has queries [starts[s], starts[s + 1]), which
// are the last of lengths[s] tokens, in the blocks of row s of the table.
KERNEL void paged_attention(int64_t dtype, const void* query, const void* key, const void* value, void* out,
                            const Steps* steps, int64_t sequences, const int64_t* starts, const int64_t* lengths,
                            const int64_t* table, int64_t table_step, int64_t heads, int64_t kv_heads, int64_t width,
                            int64_t block_tokens, float scale, int64_t window, const float* sinks, float* scratch,
                            int64_t room, int64_t threads) {
    Shape shape{heads, kv_heads, width, steps[0], steps[1], steps[2], block_tokens, scale, true, window, sinks};
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        std::vector<Sequence<T>> all;
        for (int64_t s = 0; s < sequences; ++s) {
            all.push_back({(const T*)query + starts[s] * steps[0].token, (T*)out + starts[s] * heads * width,
                           (const T*)key, (const T*)value, table + s * table_step, starts[s + 1] - starts[s],
                           lengths[s]});
        }
        attend(shape, all, room, scratch, threads);
    });
}
