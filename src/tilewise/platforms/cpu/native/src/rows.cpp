// Ops of which each row is computed by itself: norms, activations, rotation, and the cache's new rows. Each reads and
// writes memory once, and computes in float32.
#include "gelu.h"
#include "threads.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

// Rows [outer, inner] of a tensor, each some numbers behind the first (native/kernels.py).
template <typename T>
struct Rows {
    T* first;
    int64_t outer, inner, outer_step, inner_step;

    int64_t count() const { return outer * inner; }
    T* row(int64_t r) const { return first + r / inner * outer_step + r % inner * inner_step; }
};

// Calls work(row) for all rows; a few numbers in all are not worth waking threads for.
template <typename Work>
static void for_rows(int64_t rows, int64_t width, int64_t threads, Work work) {
    if (rows * width < 32768) threads = 1;
    const int64_t tasks = std::min(rows, 8 * threads);
    share(tasks, threads, [&](int64_t task, int64_t) {
        for (int64_t r = task * rows / tasks; r < (task + 1) * rows / tasks; ++r) work(r);
    });
}

// The sum over a row of what term(i, lanes) has of the numbers from i on; four sums at a time, as one would wait for
// itself. Lanes that lie behind the row count, so they have to be zero.
template <typename Term>
static float sum_of(int64_t width, Term term) {
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    int64_t i = 0;
    for (; i + 4 * Vec::width <= width; i += 4 * Vec::width) {
        for (int k = 0; k < 4; ++k) sums[k] = sums[k] + term(i + k * Vec::width, AllLanes{});
    }
    over(i, width, [&](int64_t at, auto lanes) { sums[0] = sums[0] + term(at, lanes); });
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// Over the root mean square, times weight [width].
template <typename T>
static void rms_norm_row(const T* row, const T* weight, T* to, int64_t width, float eps) {
    float squares = sum_of(width, [&](int64_t i, auto lanes) {
        Vec x = lanes.load(row + i);
        return x * x;
    });
    Vec factor = Vec::all(1.0f / std::sqrt(squares / float(width) + eps));
    over(0, width, [&](int64_t i, auto lanes) {
        lanes.store(to + i, lanes.load(row + i) * factor * lanes.load(weight + i));
    });
}

KERNEL void rms_norm(int64_t dtype, const void* x, int64_t outer, int64_t inner, int64_t outer_step,
                     int64_t inner_step, const void* weight, void* out, int64_t width, float eps, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Rows<const T> rows{(const T*)x, outer, inner, outer_step, inner_step};
        for_rows(rows.count(), width, threads, [&](int64_t r) {
            rms_norm_row(rows.row(r), (const T*)weight, (T*)out + r * width, width, eps);
        });
    });
}

// Less the mean, over the deviation, times weight [width] plus bias [width]. Squares are those of what is left without
// the mean, as a difference of large squares would lose digits.
template <typename T>
static void layer_norm_row(const T* row, const T* weight, const T* bias, T* to, int64_t width, float eps) {
    Vec mean = Vec::all(sum_of(width, [&](int64_t i, auto lanes) { return lanes.load(row + i); }) / float(width));
    float squares = sum_of(width, [&](int64_t i, auto lanes) {
        Vec rest = lanes.only(lanes.load(row + i) - mean);
        return rest * rest;
    });
    Vec factor = Vec::all(1.0f / std::sqrt(squares / float(width) + eps));
    over(0, width, [&](int64_t i, auto lanes) {
        Vec normed = (lanes.load(row + i) - mean) * factor;
        lanes.store(to + i, fma(normed, lanes.load(weight + i), lanes.load(bias + i)));
    });
}

KERNEL void layer_norm(int64_t dtype, const void* x, int64_t outer, int64_t inner, int64_t outer_step,
                       int64_t inner_step, const void* weight, const void* bias, void* out, int64_t width, float eps,
                       int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Rows<const T> rows{(const T*)x, outer, inner, outer_step, inner_step};
        for_rows(rows.count(), width, threads, [&](int64_t r) {
            layer_norm_row(rows.row(r), (const T*)weight, (const T*)bias, (T*)out + r * width, width, eps);
        });
    });
}

// Rows without gaps of x + scale [width] * y; without a scale, of x + y.
template <typename T>
struct Sums {
    const T *x, *scale, *y;
    T* out;
    int64_t width;

    T* row(int64_t r) const {
        const T *ours = x + r * width, *theirs = y + r * width;
        T* to = out + r * width;
        if (scale) {
            over(0, width, [&](int64_t i, auto lanes) {
                lanes.store(to + i, fma(lanes.load(theirs + i), lanes.load(scale + i), lanes.load(ours + i)));
            });
        } else {
            over(0, width, [&](int64_t i, auto lanes) {
                lanes.store(to + i, lanes.load(theirs + i) + lanes.load(ours + i));
            });
        }
        return to;
    }
};

KERNEL void add_scaled(int64_t dtype, const void* x, const void* scale, const void* y, void* out, int64_t rows,
                       int64_t width, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Sums<T> sums{(const T*)x, (const T*)scale, (const T*)y, (T*)out, width};
        for_rows(rows, width, threads, [&](int64_t r) { sums.row(r); });
    });
}

// The sums as `add_scaled` gives them, and their norms, while a row is in the cache.
KERNEL void add_rms_norm(int64_t dtype, const void* x, const void* scale, const void* y, void* total,
                         const void* weight, void* out, int64_t rows, int64_t width, float eps, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Sums<T> sums{(const T*)x, (const T*)scale, (const T*)y, (T*)total, width};
        for_rows(rows, width, threads, [&](int64_t r) {
            rms_norm_row(sums.row(r), (const T*)weight, (T*)out + r * width, width, eps);
        });
    });
}

KERNEL void add_layer_norm(int64_t dtype, const void* x, const void* scale, const void* y, void* total,
                           const void* weight, const void* bias, void* out, int64_t rows, int64_t width, float eps,
                           int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Sums<T> sums{(const T*)x, (const T*)scale, (const T*)y, (T*)total, width};
        for_rows(rows, width, threads, [&](int64_t r) {
            layer_norm_row(sums.row(r), (const T*)weight, (const T*)bias, (T*)out + r * width, width, eps);
        });
    });
}

// silu(x) = x / (1 + e^-x) of the first half of each row, times the second.
KERNEL void silu_mul(int64_t dtype, const void* gate_up, void* out, int64_t rows, int64_t width, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows(rows, width, threads, [&](int64_t r) {
            const T *gate = (const T*)gate_up + 2 * r * width, *up = gate + width;
            over(0, width, [&](int64_t i, auto lanes) {
                Vec x = lanes.load(gate + i);
                Vec rest = exp2(min(Vec::all(126.0f), x * Vec::all(-LOG2_E)));
                lanes.store((T*)out + r * width + i, x / (Vec::all(1.0f) + rest) * lanes.load(up + i));
            });
        });
    });
}

KERNEL void gelu(int64_t dtype, const void* x, void* out, int64_t numbers, int64_t threads) {
    static constexpr int64_t CHUNK = 1024;
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows((numbers + CHUNK - 1) / CHUNK, CHUNK, threads, [&](int64_t chunk) {
            int64_t first = chunk * CHUNK, count = numbers - first < CHUNK ? numbers - first : CHUNK;
            over(first, first + count, [&](int64_t i, auto lanes) {
                lanes.store((T*)out + i, gelu(lanes.load((const T*)x + i)));
            });
        });
    });
}

// A row turned by the angles of its token: cosines and sines [half].
template <typename T>
static void turn(const T* row, const float* cosines, const float* sines, T* to, int64_t half) {
    over(0, half, [&](int64_t i, auto lanes) {
        Vec first = lanes.load(row + i), second = lanes.load(row + half + i);
        Vec cosine = lanes.load(cosines + i), sine = lanes.load(sines + i);
        lanes.store(to + i, first * cosine - second * sine);
        lanes.store(to + half + i, fma(second, cosine, first * sine));
    });
}

// Number that the largest of a row becomes, and the least that it is taken for.
template <typename Rounded>
static constexpr float LARGEST = std::is_same_v<Rounded, int8_t> ? 127.0f : 448.0f;
static constexpr float LEAST = 1e-30f;

// A row as numbers of 8 bits; returns their scale, which is NaN where a number of the row is none, or infinite.
template <typename T, typename Rounded>
static float quantise_row(const T* row, Rounded* to, int64_t width) {
    Vec most = Vec::all(LEAST), nothing = Vec::zero();
    over(0, width, [&](int64_t i, auto lanes) {
        const Vec x = lanes.load(row + i);
        most = max(most, abs(x));
        nothing = fma(x, Vec::zero(), nothing);
    });
    const float largest = most.max() + nothing.sum();
    const Vec factor = Vec::all(LARGEST<Rounded> / largest);
    over(0, width, [&](int64_t i, auto lanes) {
        const Vec x = min(max(lanes.load(row + i) * factor, Vec::all(-LARGEST<Rounded>)), Vec::all(LARGEST<Rounded>));
        lanes.store(to + i, std::is_same_v<Rounded, int8_t> ? round(x) : x);
    });
    return largest / LARGEST<Rounded>;
}

// Queries [tokens, heads, 2 * half] are turned into `out`, keys [tokens, kv_heads, 2 * half] into their slots of a cache
// of keys, behind which, `to_values` numbers on, is that of values; a slot has `slot_size` numbers, all its heads'. A
// cache of 8 bits has scales of keys and of values, a slot's heads one beside the other.
KERNEL void rope_into_cache(int64_t dtype, int64_t tokens, int64_t half, const void* query, int64_t heads,
                            int64_t query_step, int64_t query_head, const void* key, int64_t kv_heads,
                            int64_t key_step, int64_t key_head, const void* value, int64_t value_step,
                            int64_t value_head, const float* cosines, const float* sines, const int64_t* slots,
                            void* cache, void* out, int64_t to_values, int64_t slot_size, int64_t kept,
                            float* key_scales, float* value_scales, int64_t threads) {
    const auto work = [&](auto number, auto kept_number) {
        using T = decltype(number);
        using Cache = decltype(kept_number);
        const int64_t width = 2 * half;
        for_rows(tokens, (heads + 2 * kv_heads) * width, threads, [&](int64_t token) {
            const float *cosine = cosines + token * half, *sine = sines + token * half;
            for (int64_t head = 0; head < heads; ++head) {
                const T* row = (const T*)query + token * query_step + head * query_head;
                turn(row, cosine, sine, (T*)out + (token * heads + head) * width, half);
            }
            Cache* slot = (Cache*)cache + slots[token] * slot_size;
            for (int64_t head = 0; head < kv_heads; ++head) {
                Cache* to = slot + head * width;
                const T* own = (const T*)value + token * value_step + head * value_head;
                const T* before = (const T*)key + token * key_step + head * key_head;
                if constexpr (std::is_same_v<T, Cache>) {
                    turn(before, cosine, sine, to, half);
                    std::memcpy(to + to_values, own, width * sizeof(T));
                } else {
                    thread_local std::vector<T> turned;
                    turned.resize(width);
                    turn(before, cosine, sine, turned.data(), half);
                    const int64_t scale = slots[token] * kv_heads + head;
                    key_scales[scale] = quantise_row(turned.data(), to, width);
                    value_scales[scale] = quantise_row(own, to + to_values, width);
                }
            }
        });
    };
    if (kept) {
        with_quantised(dtype, kept, work);
    } else {
        with_dtype(dtype, [&](auto number) { work(number, number); });
    }
}
