// Ops of which each row is computed by itself: norms, activations, rotation, and the cache's new rows. Each reads and
// writes memory once, and computes in float32.
#include "simd.h"

#include <cmath>

// Rows [outer, inner] of a tensor, each some numbers behind the first (call.py).
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
#pragma omp parallel for num_threads(rows * width < 32768 ? 1 : int(threads))
    for (int64_t r = 0; r < rows; ++r) work(r);
}

// The sum over a row of what term(i) has of the numbers from i on; four sums at a time, as one would wait for itself.
template <typename Term>
static float sum_of(int64_t width, Term term) {
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    int64_t i = 0;
    for (; i + 4 * Vec::width <= width; i += 4 * Vec::width) {
        for (int k = 0; k < 4; ++k) sums[k] = sums[k] + term(i + k * Vec::width);
    }
    for (; i < width; i += Vec::width) sums[0] = sums[0] + term(i);
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// Over the root mean square, times weight [width].
template <typename T>
static void rms_norm_row(const T* row, const T* weight, T* to, int64_t width, float eps) {
    float squares = sum_of(width, [&](int64_t i) {
        Vec x = load_at(row, i, width);
        return x * x;
    });
    Vec factor = Vec::all(1.0f / std::sqrt(squares / float(width) + eps));
    FOR_VECTORS(i, width) store_at(to, i, width, load_at(row, i, width) * factor * load_at(weight, i, width));
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
    Vec mean = Vec::all(sum_of(width, [&](int64_t i) { return load_at(row, i, width); }) / float(width));
    float squares = sum_of(width, [&](int64_t i) {
        Vec rest = load_at(row, i, width) - mean;
        if (i + Vec::width > width) rest = first_of(rest, width - i);
        return rest * rest;
    });
    Vec factor = Vec::all(1.0f / std::sqrt(squares / float(width) + eps));
    FOR_VECTORS(i, width) {
        Vec normed = (load_at(row, i, width) - mean) * factor;
        store_at(to, i, width, fma(normed, load_at(weight, i, width), load_at(bias, i, width)));
    }
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

// silu(x) = x / (1 + e^-x) of the first half of each row, times the second.
KERNEL void silu_mul(int64_t dtype, const void* gate_up, void* out, int64_t rows, int64_t width, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows(rows, width, threads, [&](int64_t r) {
            const T *gate = (const T*)gate_up + 2 * r * width, *up = gate + width;
            FOR_VECTORS(i, width) {
                Vec x = load_at(gate, i, width);
                Vec rest = exp2(min(Vec::all(126.0f), x * Vec::all(-LOG2_E)));
                store_at((T*)out + r * width, i, width, x / (Vec::all(1.0f) + rest) * load_at(up, i, width));
            }
        });
    });
}

// erf(x) within 1.5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
static inline Vec erf(Vec x) {
    Vec far = abs(x), t = Vec::all(1.0f) / fma(Vec::all(0.3275911f), far, Vec::all(1.0f));
    Vec y = Vec::all(1.061405429f);
    y = fma(y, t, Vec::all(-1.453152027f));
    y = fma(y, t, Vec::all(1.421413741f));
    y = fma(y, t, Vec::all(-0.284496736f));
    y = fma(y, t, Vec::all(0.254829592f));
    Vec rest = exp2(far * far * Vec::all(-LOG2_E));
    return with_sign(Vec::all(1.0f) - y * t * rest, x);
}

// x (1 + erf(x / sqrt 2)) / 2
KERNEL void gelu(int64_t dtype, const void* x, void* out, int64_t numbers, int64_t threads) {
    static constexpr int64_t CHUNK = 1024;
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows((numbers + CHUNK - 1) / CHUNK, CHUNK, threads, [&](int64_t chunk) {
            int64_t first = chunk * CHUNK, count = numbers - first < CHUNK ? numbers - first : CHUNK;
            FOR_VECTORS(i, count) {
                Vec half = load_at((const T*)x + first, i, count) * Vec::all(0.5f);
                store_at((T*)out + first, i, count, fma(half, erf(half * Vec::all(1.41421356237f)), half));
            }
        });
    });
}

// Rows x [tokens, heads, 2 * half] turned by the angles of their token: cosines and sines [tokens, half].
KERNEL void rope(int64_t dtype, const void* x, int64_t tokens, int64_t heads, int64_t token_step, int64_t head_step,
                 const float* cosines, const float* sines, void* out, int64_t half, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows(tokens, 2 * heads * half, threads, [&](int64_t token) {
            for (int64_t head = 0; head < heads; ++head) {
                const T* row = (const T*)x + token * token_step + head * head_step;
                T* to = (T*)out + (token * heads + head) * 2 * half;
                FOR_VECTORS(i, half) {
                    Vec first = load_at(row, i, half), second = load_at(row + half, i, half);
                    Vec cosine = load_at(cosines + token * half, i, half), sine = load_at(sines + token * half, i, half);
                    store_at(to, i, half, first * cosine - second * sine);
                    store_at(to + half, i, half, fma(second, cosine, first * sine));
                }
            }
        });
    });
}

// New keys or values [tokens, heads, width] to their slots of a cache [slots, heads, width]; numbers are copied as they
// are, so their size is all that counts.
KERNEL void write_rows(int64_t itemsize, const char* rows, int64_t tokens, int64_t heads, int64_t token_step,
                       int64_t head_step, const int64_t* slots, char* cache, int64_t width, int64_t threads) {
    int64_t bytes = width * itemsize;
    for_rows(tokens, heads * width, threads, [&](int64_t token) {
        for (int64_t head = 0; head < heads; ++head) {
            const char* from = rows + (token * token_step + head * head_step) * itemsize;
            std::memcpy(cache + (slots[token] * heads + head) * bytes, from, bytes);
        }
    });
}

// x + scale [width] * y, all rows without gaps; without a scale, x + y.
KERNEL void add_scaled(int64_t dtype, const void* x, const void* scale, const void* y, void* out, int64_t rows,
                       int64_t width, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        for_rows(rows, width, threads, [&](int64_t r) {
            const T *ours = (const T*)x + r * width, *theirs = (const T*)y + r * width;
            FOR_VECTORS(i, width) {
                Vec factor = scale ? load_at((const T*)scale, i, width) : Vec::all(1.0f);
                Vec sum = fma(load_at(theirs, i, width), factor, load_at(ours, i, width));
                store_at((T*)out + r * width, i, width, sum);
            }
        });
    });
}
