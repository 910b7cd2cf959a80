// Attention over tiles, and over caches of the rows' own dtype.
#include "attention_pieces.h"

// Numbers of scratch for each thread.
KERNEL int64_t attention_scratch(int64_t width) { return scratch_numbers(width); }

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
        std::vector<Sequence<T, T>> sequences;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const Past<T> past{(const T*)key + tile * steps[1].block, (const T*)value + tile * steps[2].block, &whole,
                               queries, keys, nullptr, nullptr};
            sequences.push_back({past, (const T*)query + tile * steps[0].block,
                                 (T*)out + tile * queries * heads * width});
        }
        attend(shape, sequences, 0, scratch, threads);
    });
}

// `attend_pages` over a cache of the rows' dtype.
KERNEL void paged_attention(int64_t dtype, const void* query, const void* key, const void* value, void* out,
                            const Steps* steps, int64_t sequences, const int64_t* starts, const int64_t* lengths,
                            const int64_t* table, int64_t table_step, int64_t heads, int64_t kv_heads, int64_t width,
                            int64_t block_tokens, float scale, int64_t window, const float* sinks, float* scratch,
                            int64_t room, int64_t threads) {
    const Shape shape{heads, kv_heads, width, steps[0], steps[1], steps[2], block_tokens, scale, true, window, sinks};
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        const Past<T> cache{(const T*)key, (const T*)value, nullptr, 0, 0, nullptr, nullptr};
        attend_pages(shape, cache, (const T*)query, (T*)out, sequences, starts, lengths, table, table_step, scratch,
                     room, threads);
    });
}
