// Ops of which each row is computed by itself: norms, activations, rotation. One pass over memory each.
#include "simd.h"

#include <cmath>

// Rows of few numbers in all are not worth waking threads for.
static inline int threads_for(int64_t numbers, int64_t threads) { return numbers < 32768 ? 1 : int(threads); }

// Rows [outer, inner] of a tensor, each some numbers behind the first (call.py).
template <typename T>
struct Rows {
    T* first;
    int64_t outer, inner, outer_step, inner_step;

    int64_t count() const { return outer * inner; }
    T* row(int64_t r) const { return first + r / inner * outer_step + r % inner * inner_step; }
};

// Over the root mean square, times weight [width].
template <typename T>
static void rms_norm_rows(Rows<const T> x, const T* weight, T* out, int64_t width, float eps, int64_t threads) {
#pragma omp parallel for num_threads(threads_for(x.count() * width, threads))
    for (int64_t r = 0; r < x.count(); ++r) {
        const T* row = x.row(r);
        T* to = out + r * width;
        Vec squares = Vec::zero();
        FOR_VECTORS(i, width) {
            Vec v = load_at(row, i, width);
            squares = fma(v, v, squares);
        }
        Vec factor = Vec::all(1.0f / std::sqrt(squares.sum() / float(width) + eps));
        FOR_VECTORS(i, width) {
            Vec normed = load_at(row, i, width) * factor;
            store_at(to, i, width, normed * load_at(weight, i, width));
        }
    }
}

KERNEL void rms_norm(int64_t dtype, const void* x, int64_t outer, int64_t inner, int64_t outer_step,
                     int64_t inner_step, const void* weight, void* out, int64_t width, float eps, int64_t threads) {
    with_dtype(dtype, [&](auto number) {
        using T = decltype(number);
        Rows<const T> rows{(const T*)x, outer, inner, outer_step, inner_step};
        rms_norm_rows<T>(rows, (const T*)weight, (T*)out, width, eps, threads);
    });
}
