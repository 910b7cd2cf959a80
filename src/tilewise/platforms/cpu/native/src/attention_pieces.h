// Attention without a matrix of scores: softmax goes along with the sums over keys (FlashAttention, arXiv 2205.14135).
//
// A piece of work is a block of query rows of one sequence (or tile) and one key/value head. All query heads that share
// that head are rows beside each other, so each key is read once for all of them. Keys come in blocks that begin
// at multiples of their length. For many rows they are transposed and values copied into the thread's scratch: as float32
// (attention_packed.h), or, where the CPU multiplies pairs of bfloat16 and the cache has them, as those
// (attention_pairs.h). For few, as of a decoded token, both are read where they are (attention_direct.h).
// A row's sums therefore run in one order that depends on nothing but its position and how many queries its sequence has
// in this step: few of them share out a long past among threads, in parts that begin at multiples of PART.
#pragma once

#include "attention_direct.h"
#include "attention_packed.h"
#include "attention_pairs.h"
#include "threads.h"

#include <vector>

static constexpr int64_t PART = 256;  // keys of a part, where few rows have a long past
static constexpr int64_t FEW = 48;    // rows up to which that is done
static constexpr int64_t DIRECT = 16;  // rows of a sequence up to which its keys are not packed

// The way in which a sequence is computed, whatever it is cut into: keys are read where they are, or packed as float32
// or as pairs of bfloat16.
enum class Way { DIRECT, PACKED, PAIRS };

template <typename T>
static bool by_pairs() {
#ifdef BY_PAIRS
    return std::is_same_v<T, bfloat16> && PairProducts::there();
#else
    return false;
#endif
}

template <typename T, typename Cache>
static Way way_of(const Shape& shape, const Sequence<T, Cache>& sequence) {
    if (sequence.queries * shape.group() <= DIRECT) return Way::DIRECT;
    return by_pairs<T>() ? Way::PAIRS : Way::PACKED;
}

static int64_t scratch_numbers(int64_t width) {
    const int64_t pairs = by_pairs<bfloat16>() ? PairScratch::numbers(width) : 0;
    return up(std::max(Scratch::numbers(width), pairs), Vec::width);
}

// The rows of a piece over all of its keys.
template <typename T, typename Cache>
static Results run(const Shape& shape, const Sequence<T, Cache>& sequence, const Piece& piece, float* memory) {
    const Way way = way_of(shape, sequence);
#ifdef BY_PAIRS
    if constexpr (std::is_same_v<T, bfloat16>) {
        if (way == Way::PAIRS) {
            const PairScratch scratch(memory, shape);
            run_pairs(shape, sequence, piece, scratch);
            return scratch;
        }
    }
#endif
    const Scratch scratch(memory, shape);
    int64_t width = shape.width, group = shape.group();
    Vec factor = Vec::all(shape.scale * LOG2_E);
    for (int64_t r = 0; r < piece.rows; ++r) {
        int64_t query = (piece.row + r) / group, head = piece.head * group + (piece.row + r) % group;
        const T* from = sequence.query + query * shape.query.token + head * shape.query.head;
        float* to = scratch.query + r * width;
        FOR_VECTORS(d, width) store_at(to, d, width, load_at(from, d, width) * factor);
    }
    std::fill(scratch.mixed, scratch.mixed + piece.rows * shape.padded(), 0.0f);
    if (way == Way::DIRECT) {
        run_direct(shape, sequence, piece, scratch);
    } else {
        run_packed(shape, sequence, piece, scratch);
    }
    return scratch;
}

// A row's sum over what was mixed, and the sink in it.
template <typename T, typename Cache>
static void finish(const Shape& shape, const Sequence<T, Cache>& sequence, int64_t kv_head, int64_t row,
                   const float* mixed, float most, float sum) {
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

static void keep(const Shape& shape, const Piece& piece, const Results& found) {
    int64_t padded = shape.padded();
    for (int64_t r = 0; r < piece.rows; ++r) {
        float* to = piece.partial + r * unfinished(shape);
        std::copy_n(found.mixed + r * padded, padded, to);
        to[padded] = found.most[r];
        to[padded + 1] = found.sum[r];
    }
}

// Merges the results of a row over the parts of its keys, `step` numbers apart, one after the other into the first
// part's place, and finishes the row.
template <typename T, typename Cache>
static void merge(const Shape& shape, const Sequence<T, Cache>& sequence, int64_t head, int64_t row, float* first,
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
template <typename T, typename Cache>
static int64_t piece_rows(const Shape& shape, const std::vector<Sequence<T, Cache>>& sequences, int64_t threads) {
    const int64_t padded = shape.padded(), most = by_pairs<T>() ? PairScratch::rows(padded) : Scratch::rows(padded);
    int64_t rows = 0;
    for (const Sequence<T, Cache>& sequence : sequences) rows += sequence.queries * shape.heads;
    return std::clamp(up(rows / (4 * threads), ROWS), ROWS, most);
}

// Keys that rows [row, row + rows) of a sequence see: from where a block of them begins.
template <typename T, typename Cache>
static std::pair<int64_t, int64_t> seen(const Shape& shape, const Sequence<T, Cache>& sequence, int64_t row,
                                        int64_t rows) {
    if (!shape.causal) return {0, sequence.keys};
    int64_t before = sequence.keys - sequence.queries;
    int64_t first = before + row / shape.group(), last = before + (row + rows - 1) / shape.group();
    const int64_t block = way_of(shape, sequence) == Way::PAIRS ? PAIR_KEYS : KEYS;
    return {shape.window ? std::max<int64_t>(0, first + 1 - shape.window) / block * block : 0, last + 1};
}

struct Split {
    int64_t sequence, head, rows, parts;
    float* partial;
};

// Numbers that a sequence keeps until its parts are merged; 0 = it is not split.
template <typename T, typename Cache>
static int64_t split_numbers(const Shape& shape, const Sequence<T, Cache>& sequence) {
    int64_t rows = sequence.queries * shape.group();
    if (!shape.causal || rows > FEW || rows == 0) return 0;
    auto [first, last] = seen(shape, sequence, 0, rows);
    int64_t parts = (last - first + PART - 1) / PART;
    return parts > 1 ? shape.kv_heads * parts * rows * unfinished(shape) : 0;
}

// Sequences [begin, end) at once; `room` has space for what they keep.
template <typename T, typename Cache>
static void attend_some(const Shape& shape, const std::vector<Sequence<T, Cache>>& sequences, int64_t begin,
                        int64_t end, float* room, float* scratch, int64_t threads) {
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
    // The longest come last in a sequence, and are best begun first.
    share(pieces.size(), threads, [&](int64_t task, int64_t thread) {
        const Piece& piece = pieces[pieces.size() - 1 - task];
        const Sequence<T, Cache>& sequence = sequences[piece.sequence];
        const Results own = run(shape, sequence, piece, scratch + thread * scratch_numbers(shape.width));
        if (piece.partial) return keep(shape, piece, own);
        for (int64_t r = 0; r < piece.rows; ++r) {
            finish(shape, sequence, piece.head, piece.row + r, own.mixed + r * shape.padded(), own.most[r],
                   own.sum[r]);
        }
    });
    share(splits.size(), threads, [&](int64_t task, int64_t) {
        const Split& split = splits[task];
        int64_t step = split.rows * unfinished(shape);
        for (int64_t row = 0; row < split.rows; ++row) {
            merge(shape, sequences[split.sequence], split.head, row, split.partial + row * unfinished(shape),
                  split.parts, step);
        }
    });
}

// Sequences in their order, as many at once as `room` numbers are enough for.
template <typename T, typename Cache>
static void attend(const Shape& shape, const std::vector<Sequence<T, Cache>>& sequences, int64_t room, float* scratch,
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

// query [N, heads, width] over the keys and values of a cache; sequence s has queries [starts[s], starts[s + 1]), which
// are the last of lengths[s] tokens, in the blocks of row s of the table.
template <typename T, typename Cache>
static void attend_pages(const Shape& shape, const Past<Cache>& cache, const T* query, T* out, int64_t sequences,
                         const int64_t* starts, const int64_t* lengths, const int64_t* table, int64_t table_step,
                         float* scratch, int64_t room, int64_t threads) {
    std::vector<Sequence<T, Cache>> all;
    for (int64_t s = 0; s < sequences; ++s) {
        Past<Cache> past = cache;
        past.blocks = table + s * table_step;
        past.queries = starts[s + 1] - starts[s];
        past.keys = lengths[s];
        all.push_back({past, query + starts[s] * shape.query.token, out + starts[s] * shape.heads * shape.width});
    }
    attend(shape, all, room, scratch, threads);
}
