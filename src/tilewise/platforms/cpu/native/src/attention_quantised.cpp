// Attention over caches of 8 bits.
#include "attention_pieces.h"

// `attend_pages` over keys and values with scales [blocks, tokens of a block, kv_heads]; `kept` says what their numbers
// are.
KERNEL void quantised_paged_attention(int64_t dtype, int64_t kept, const void* query, const void* key,
                                      const void* value, const float* key_scales, const float* value_scales, void* out,
                                      const Steps* steps, int64_t sequences, const int64_t* starts,
                                      const int64_t* lengths, const int64_t* table, int64_t table_step, int64_t heads,
                                      int64_t kv_heads, int64_t width, int64_t block_tokens, float scale,
                                      int64_t window, const float* sinks, float* scratch, int64_t room,
                                      int64_t threads) {
    const Shape shape{heads, kv_heads, width, steps[0], steps[1], steps[2], block_tokens, scale, true, window, sinks};
    with_quantised(dtype, kept, [&](auto number, auto kept_number) {
        using T = decltype(number);
        using Cache = decltype(kept_number);
        const Past<Cache> cache{(const Cache*)key, (const Cache*)value, nullptr, 0, 0, key_scales, value_scales};
        attend_pages(shape, cache, (const T*)query, (T*)out, sequences, starts, lengths, table, table_step, scratch,
                     room, threads);
    });
}
