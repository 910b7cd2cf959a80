/* What this machine's cores reach: memory reads in bytes a second, and multiply-adds on registers, in operations a second.

   cc -O3 -march=native -pthread limits.c -o limits; ./limits THREADS
   Prints "name value" lines, each the best of five. Built and run by roofline.py. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MEBIBYTES = 1024, ROUNDS = 5, STEPS = 20000000, CHAINS = 10 };
/* Ten chains hide the latency of two multiply-adds a cycle and fit the registers of AVX2. */

#if defined(__AVX512F__)
enum { WIDTH = 64 };
#else
enum { WIDTH = 32 };
#endif
typedef float Floats __attribute__((vector_size(WIDTH)));
typedef long long Words __attribute__((vector_size(WIDTH)));

static int threads;
static char *memory;
static pthread_barrier_t barrier;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* Seconds between two moments at which all threads were there. */
#define TIMED(seconds, body)                \
    do {                                    \
        pthread_barrier_wait(&barrier);     \
        double start = now();               \
        body;                               \
        pthread_barrier_wait(&barrier);     \
        seconds = now() - start;            \
    } while (0)

/* Keeps a value in its register, whatever the compiler could compute in advance. */
#define KEEP(x) __asm__ volatile("" : "+v"(x))

static void read_part(long id) {
    size_t part = ((size_t)MEBIBYTES << 20) / threads / (4 * WIDTH) * (4 * WIDTH);
    const Words *at = (const Words *)(memory + id * part);
    Words a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i < part / WIDTH; i += 4) {
        __builtin_prefetch((const char *)(at + i) + 4096);
        a += at[i], b += at[i + 1], c += at[i + 2], d += at[i + 3];
    }
    a += b + c + d;
    KEEP(a);
}

#define CHAINED(type, operation)                            \
    do {                                                    \
        type sum[CHAINS];                                   \
        _Pragma("GCC unroll 10")                            \
        for (int j = 0; j < CHAINS; j++)                    \
            sum[j] = (type){0};                             \
        for (int i = 0; i < STEPS; i++)                     \
            _Pragma("GCC unroll 10")                        \
            for (int j = 0; j < CHAINS; j++) {              \
                operation;                                  \
                KEEP(sum[j]);                               \
            }                                               \
    } while (0)

#if defined(__x86_64__)
#define KEEPABLE 1
static void multiply_floats(void) {
    Floats x;
    memset(&x, 0x3a, sizeof x); /* 7e-4, whose products are no denormals */
    KEEP(x);
    CHAINED(Floats, sum[j] += x * x);
}

#if defined(__AVX512BF16__)
static void multiply_bf16(void) {
    __m512bh x;
    memset(&x, 0x3a, sizeof x); /* 7e-4, whose products are no denormals */
    CHAINED(__m512, sum[j] = _mm512_dpbf16_ps(sum[j], x, x));
}
#endif

#if defined(__AVX512VNNI__)
static const double INT8 = 128;
static void multiply_int8(void) {
    __m512i x = _mm512_set1_epi8(1);
    CHAINED(__m512i, sum[j] = _mm512_dpbusd_epi32(sum[j], x, x));
}
#elif defined(__AVX2__)
static const double INT8 = 64;
static void multiply_int8(void) { /* unsigned x signed to pairs of int16, their pairs to int32: three instructions */
    __m256i x = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
    CHAINED(__m256i, __m256i y = x; KEEP(y);
            sum[j] = _mm256_add_epi32(sum[j], _mm256_madd_epi16(_mm256_maddubs_epi16(y, x), ones)));
}
#endif
#endif

static void report(long id, const char *name, double amount, double seconds, double *best) {
    double rate = amount / seconds;
    if (id == 0 && rate > *best) {
        *best = rate;
        printf("%s %.4g\n", name, rate);
    }
}

static void *work(void *argument) {
    long id = (long)argument;
    double seconds, read = 0, floats = 0, bf16 = 0, int8 = 0, steps = (double)threads * STEPS * CHAINS;
    for (int round = 0; round < ROUNDS; round++) {
        TIMED(seconds, read_part(id));
        report(id, "read", (double)MEBIBYTES * (1 << 20), seconds, &read);
#ifdef KEEPABLE
        TIMED(seconds, multiply_floats());
        report(id, "float32", steps * WIDTH / 4 * 2, seconds, &floats);
#if defined(__AVX512BF16__)
        TIMED(seconds, multiply_bf16());
        report(id, "bfloat16", steps * 64, seconds, &bf16);
#endif
#if defined(__AVX2__)
        TIMED(seconds, multiply_int8());
        report(id, "int8", steps * INT8, seconds, &int8);
#endif
#endif
    }
    (void)floats, (void)bf16, (void)int8;
    return NULL;
}

int main(int count, char **arguments) {
    threads = count > 1 ? atoi(arguments[1]) : 1;
    if (threads < 1 || threads > 256 || posix_memalign((void **)&memory, 1 << 21, (size_t)MEBIBYTES << 20))
        return 1;
    memset(memory, 1, (size_t)MEBIBYTES << 20);
    pthread_barrier_init(&barrier, NULL, threads);
    pthread_t team[256];
    for (long id = 0; id < threads; id++)
        pthread_create(&team[id], NULL, work, (void *)id);
    for (long id = 0; id < threads; id++)
        pthread_join(team[id], NULL);
    return 0;
}
