/* The passes of a step on bfloat16: equations (3), (5), (6) and (7) with their derivatives, one call each.

   A lane of a vector is a row of the batch. Activations lie as pairs of bfloat16, [i / 2][vector][lane], as
   VDPBF16PS multiplies them, in blocks of up to four vectors: a block goes through all layers before the next one
   begins, and nothing that is between two layers leaves the cache. Every product is one function: sums over pairs
   of which one factor is a vector and the other the same for all its lanes, read where it lies. What a row's
   results are does not depend on its lane.

   For the candidates of eq. (7) a lane is a state and a vector one candidate of each: what a first layer makes of the
   states is shared by all candidates.

   Called by parts.py, which keeps to what is asked for here. It is one file, as everything rests on the same few
   vectors of lanes and the compiler must see them to keep their sums in registers. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LAYERS 8

/* A ReLU MLP with at least one hidden layer; the last layer is linear. */
typedef struct {
    int32_t layers;
    int32_t widths[MOST_LAYERS + 1];      /* of the input, and of each layer's output */
    const uint16_t *weights[MOST_LAYERS]; /* bfloat16[o][i] */
    const uint16_t *biases[MOST_LAYERS];  /* bfloat16[o] */
    const float *last_weight, *last_bias; /* the last layer's in float32 */
    float *gradients[2 * MOST_LAYERS];    /* where those of W, b, W, b, ... belong; NULL where nothing is learnt */
    int8_t *eight[MOST_LAYERS];           /* W in eight bits, a row every multiple of four; NULL where it is not used */
    float *scales[MOST_LAYERS];           /* and what each row's numbers are multiples of */
} Net;

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include <immintrin.h>
#include <math.h>
#include <sys/mman.h>
#include <time.h>

#define LANES 16
#define AHEAD 8 /* rows that are fetched before they are read */
#define LARGE_PAGE ((size_t)1 << 21)
#define MOST_VECTORS 4
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Space for a call's intermediate results, kept by the thread for the next. */
static _Thread_local struct {
    char *start;
    size_t bytes, used;
} arena;

static int arena_of(size_t bytes) {
    arena.used = 0;
    if (arena.bytes >= bytes) return 1;
    free(arena.start);
    const size_t page = bytes < LARGE_PAGE ? 64 : LARGE_PAGE, whole = (bytes + page - 1) / page * page;
    arena.start = aligned_alloc(page, whole);
    arena.bytes = arena.start ? bytes : 0;
#ifdef MADV_HUGEPAGE
    if (arena.start && page == LARGE_PAGE) madvise(arena.start, whole, MADV_HUGEPAGE);
#endif
    return arena.start != NULL;
}

static void *take(size_t numbers) { /* of four bytes */
    char *at = arena.start + arena.used;
    arena.used += (numbers + LANES - 1) / LANES * 64;
    return at;
}

/* Numbers. */

/* The first ``left`` lanes, or all where there are more. */
INLINE __mmask16 lanes_of(int64_t left) {
    return left >= LANES ? 0xFFFF : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
}

INLINE __m512 all(float x) { return _mm512_set1_ps(x); }

INLINE __m512 of_bfloat16(uint16_t bits) {
    return _mm512_castsi512_ps(_mm512_set1_epi32((int)((uint32_t)bits << 16)));
}

INLINE __m512i pair_of(__m512 even, __m512 odd) {
    const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

INLINE __m512 one_of(__m512i pair, int odd) {
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(pair, _mm512_set1_epi32((int)0xFFFF0000u))
                                   : _mm512_slli_epi32(pair, 16));
}

/* 2^y to about 1e-7; NaN stays NaN. */
INLINE __m512 power_of_two(__m512 y) {
    static const float series[] = {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f,
                                   2.40226507e-1f, 6.93147181e-1f, 1.0f}; /* of 2^part, by Taylor */
    const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(y, whole);
    __m512 e = all(1.54035304e-4f);
    UNROLL for (int i = 0; i < 6; i++) e = _mm512_fmadd_ps(e, part, all(series[i]));
    return _mm512_scalef_ps(e, whole);
}

INLINE __m512 exponential(__m512 x) { return power_of_two(_mm512_mul_ps(x, all(1.44269504f))); }

INLINE __m512 hyperbolic_tangent(__m512 x) {
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000u));
    const __m512 e = exponential(_mm512_max_ps(all(-40.0f), _mm512_mul_ps(_mm512_abs_ps(x), all(-2.0f))));
    const __m512 value = _mm512_div_ps(_mm512_sub_ps(all(1.0f), e), _mm512_add_ps(all(1.0f), e));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign));
}

/* The number comes second, so that NaN stays. */
INLINE __m512 between(float low, __m512 x, float high) {
    return _mm512_max_ps(all(low), _mm512_min_ps(all(high), x));
}

/* Of what is not negative; NaN is the largest. */
INLINE __m512 largest_of(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(_mm512_abs_ps(b))));
}

/* 16 vectors as the rows of a matrix become its columns. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t pairs_of(int width) { return (size_t)(width + 1) / 2; }
static size_t padded(int width) { return ((size_t)width + LANES - 1) / LANES * LANES; }

/* Products. */

/* sum[o][v] = start + what the pairs k of both factors make */
typedef struct {
    const uint16_t *shared; /* pair k of output o begins at shared + o * by_output + k * by_pair */
    ptrdiff_t by_output, by_pair;
    const uint32_t *vectors; /* and of vector v at vectors + k * vectors_by_pair + v * LANES */
    ptrdiff_t vectors_by_pair;
    int pairs, single; /* whether one number is left after the pairs */
    int outputs;
    const float *start;   /* [o][lane], for all vectors, or where starts is 1 [o][vector][lane]; */
    int starts;
    const uint16_t *bias; /* or [o], for all lanes; or both NULL */
} Product;

/* What becomes of the sums: one of four. */
typedef struct {
    enum { LINEAR, RELU, DOT, BACK } kind;
    float *linear; /* LINEAR: at linear + o * by_output + v * LANES; of the last vector only ``last`` */
    ptrdiff_t by_output;
    __mmask16 last;
    __m512 *most;             /* RELU: [v], the most of it so far; or NULL */
    uint32_t *pairs;          /* RELU: pairs of it. BACK: pairs of those whose ReLU let something through, */
    const uint32_t *activity; /* which these pairs are, */
    uint16_t *rows;           /* and the same row by row, at rows + o * by_output + v * LANES */
    __m512 *dot;              /* DOT: [v], to which their ReLU times weight[o] is added */
    const float *weight;
} Then;

/* What becomes of O * V sums. */
INLINE void finish(const int V, const int O, __m512 sum[16][MOST_VECTORS], int o, const Then *then) {
    const __m512 zero = _mm512_setzero_ps();
    switch (then->kind) {
    case LINEAR:
        UNROLL for (int i = 0; i < O; i++)
            UNROLL for (int v = 0; v < V; v++)
                _mm512_mask_storeu_ps(then->linear + (o + i) * then->by_output + v * LANES,
                                      v + 1 < V ? (__mmask16)0xFFFF : then->last, sum[i][v]);
        break;
    case RELU:
        if (then->most)
            UNROLL for (int i = 0; i < O; i++)
                UNROLL for (int v = 0; v < V; v++) then->most[v] = largest_of(then->most[v], _mm512_max_ps(zero, sum[i][v]));
        UNROLL for (int i = 0; i < O; i += 2)
            UNROLL for (int v = 0; v < V; v++)
                _mm512_store_si512(then->pairs + ((size_t)(o + i) / 2 * V + v) * LANES,
                                   pair_of(_mm512_max_ps(zero, sum[i][v]),
                                           i + 1 < O ? _mm512_max_ps(zero, sum[i + 1][v]) : zero));
        break;
    case DOT:
        UNROLL for (int i = 0; i < O; i++)
            UNROLL for (int v = 0; v < V; v++)
                then->dot[v] =
                    _mm512_fmadd_ps(_mm512_max_ps(zero, sum[i][v]), all(then->weight[o + i]), then->dot[v]);
        break;
    case BACK:
        UNROLL for (int i = 0; i < O; i += 2)
            UNROLL for (int v = 0; v < V; v++) {
                const size_t at = ((size_t)(o + i) / 2 * V + v) * LANES;
                const __m512i active = _mm512_load_si512(then->activity + at);
                const __m512 even = _mm512_maskz_mov_ps(
                    _mm512_test_epi32_mask(active, _mm512_set1_epi32(0xFFFF)), sum[i][v]);
                const __m512 odd =
                    i + 1 < O ? _mm512_maskz_mov_ps(
                                    _mm512_test_epi32_mask(active, _mm512_set1_epi32((int)0xFFFF0000u)), sum[i + 1][v])
                              : zero;
                uint16_t *row = then->rows + (o + i) * then->by_output + v * LANES;
                _mm512_store_si512(then->pairs + at, pair_of(even, odd));
                _mm256_store_si256((__m256i *)row, (__m256i)_mm512_cvtneps_pbh(even));
                if (i + 1 < O) _mm256_store_si256((__m256i *)(row + then->by_output), (__m256i)_mm512_cvtneps_pbh(odd));
            }
        break;
    }
}

/* O outputs from ``o`` on of V vectors; their O * V sums stay in registers. */
INLINE void tile(const int V, const int O, const Product *p, int o, const Then *then) {
    __m512 sum[16][MOST_VECTORS], input[MOST_VECTORS];
    const ptrdiff_t by_output = p->by_output, by_pair = p->by_pair, step = p->vectors_by_pair;
    const uint16_t *shared = p->shared + o * by_output;
    const uint32_t *x = p->vectors;
    const __m512 zero = _mm512_setzero_ps();
    UNROLL for (int i = 0; i < O; i++) {
        const __m512 start = p->start  ? _mm512_load_ps(p->start + (size_t)(o + i) * (p->starts ? V : 1) * LANES)
                             : p->bias ? of_bfloat16(p->bias[o + i])
                                       : zero;
        UNROLL for (int v = 0; v < V; v++)
            sum[i][v] = p->starts && v ? _mm512_load_ps(p->start + ((size_t)(o + i) * V + v) * LANES) : start;
    }
    for (int k = 0; k < p->pairs; k++, x += step, shared += by_pair) {
        UNROLL for (int v = 0; v < V; v++) input[v] = _mm512_load_ps(x + v * LANES);
        UNROLL for (int i = 0; i < O; i++) {
            int32_t pair;
            memcpy(&pair, shared + i * by_output, sizeof pair);
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int v = 0; v < V; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)input[v], factor);
        }
    }
    if (p->single) {
        UNROLL for (int v = 0; v < V; v++) input[v] = _mm512_load_ps(x + v * LANES);
        UNROLL for (int i = 0; i < O; i++) {
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(shared[i * by_output]);
            UNROLL for (int v = 0; v < V; v++) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)input[v], factor);
        }
    }
    finish(V, O, sum, o, then);
}

/* For each number of vectors, tiles as large as the 32 registers allow. */
#define MULTIPLY(NAME, FACTORS, TILE, V, O)                                               \
    static void NAME##_##V(const FACTORS *p, const Then *then) {                          \
        int o = 0;                                                                        \
        for (; o + O <= p->outputs; o += O) TILE(V, O, p, o, then);                       \
        for (; o + 2 <= p->outputs; o += 2) TILE(V, 2, p, o, then);                       \
        if (o < p->outputs) TILE(V, 1, p, o, then);                                       \
    }
MULTIPLY(multiply, Product, tile, 1, 16)
MULTIPLY(multiply, Product, tile, 2, 12)
MULTIPLY(multiply, Product, tile, 3, 8)
MULTIPLY(multiply, Product, tile, 4, 6)
static void (*const multiply[])(const Product *, const Then *) = {NULL, multiply_1, multiply_2, multiply_3, multiply_4};

/* A layer's product, of its input's columns from ``skipped`` on, for V vectors of pairs. */
static Product layer_of(const Net *net, int l, int skipped, int inputs, int V, const uint32_t *x, const float *start) {
    return (Product){.shared = net->weights[l] + skipped, .by_output = net->widths[l], .by_pair = 2, .vectors = x,
                     .vectors_by_pair = V * LANES, .pairs = inputs / 2, .single = inputs % 2,
                     .outputs = net->widths[l + 1], .start = start, .bias = net->biases[l]};
}

/* Rows of ``width`` bfloat16, one a lane, into the pairs from ``pairs`` on of vector v of V. */
static void gather(uint32_t *pairs, int V, int v, const uint16_t *from, __m512i offsets, int width) {
    uint32_t *to = pairs + (size_t)v * LANES;
    for (int i = 0; i + 2 <= width; i += 2, to += V * LANES)
        _mm512_store_si512(to, _mm512_i32gather_epi32(offsets, from + i, sizeof *from));
    if (width % 2) { /* the last one's neighbour may lie outside */
        int32_t offset[LANES];
        _mm512_storeu_si512(offset, offsets);
        for (int lane = 0; lane < LANES; lane++) to[lane] = from[offset[lane] + width - 1];
    }
}

/* The lanes' offsets in rows of ``stride``, of which there are ``count``: lanes without one repeat the last. */
static __m512i offsets_of(int count, int stride) {
    int32_t offset[LANES];
    for (int lane = 0; lane < LANES; lane++) offset[lane] = (lane < count ? lane : count - 1) * stride;
    return _mm512_loadu_si512(offset);
}

static size_t widest_of(const Net *net) {
    int widest = 0;
    for (int l = 0; l <= net->layers; l++)
        if (net->widths[l] > widest) widest = net->widths[l];
    return (size_t)widest;
}

/* The same of integers of eight bits, for what a ReLU let through: four at a time, by VPDPBUSD. Each row has a
   scale, and each output's weights have one. */

static ptrdiff_t fours(int width) { return ((ptrdiff_t)width + 3) / 4; }

typedef struct {
    const int8_t *weights; /* [o][stride], the columns up to stride being 0 */
    ptrdiff_t stride;
    const float *by_output; /* the scales of the weights [o] */
    const uint32_t *fours;  /* [i / 4][vector][lane] */
    __m512 scales[MOST_VECTORS];
    const uint16_t *bias;
    int outputs;
} EightProduct;

INLINE void eight_tile(const int V, const int O, const EightProduct *p, int o, const Then *then) {
    __m512i whole[16][MOST_VECTORS], input[MOST_VECTORS];
    __m512 sum[16][MOST_VECTORS];
    const ptrdiff_t stride = p->stride;
    const int8_t *row = p->weights + o * stride;
    const uint32_t *x = p->fours;
    UNROLL for (int i = 0; i < O; i++)
        UNROLL for (int v = 0; v < V; v++) whole[i][v] = _mm512_setzero_si512();
    for (ptrdiff_t k = 0; k < stride; k += 4, x += V * LANES) {
        UNROLL for (int v = 0; v < V; v++) input[v] = _mm512_load_si512(x + v * LANES);
        UNROLL for (int i = 0; i < O; i++) {
            int32_t four;
            memcpy(&four, row + i * stride + k, sizeof four);
            const __m512i factor = _mm512_set1_epi32(four);
            /* of _mm512_dpbusd_epi32, GCC 12 keeps the sums in memory */
            UNROLL for (int v = 0; v < V; v++)
                __asm__("vpdpbusd %2, %1, %0" : "+v"(whole[i][v]) : "v"(input[v]), "v"(factor));
        }
    }
    UNROLL for (int i = 0; i < O; i++) {
        const __m512 scale = all(p->by_output[o + i]), bias = of_bfloat16(p->bias[o + i]);
        UNROLL for (int v = 0; v < V; v++)
            sum[i][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[i][v]), _mm512_mul_ps(scale, p->scales[v]), bias);
    }
    finish(V, O, sum, o, then);
}

MULTIPLY(multiply_eight, EightProduct, eight_tile, 1, 16)
MULTIPLY(multiply_eight, EightProduct, eight_tile, 2, 12)
MULTIPLY(multiply_eight, EightProduct, eight_tile, 3, 8)
MULTIPLY(multiply_eight, EightProduct, eight_tile, 4, 6)
static void (*const multiply_eight[])(const EightProduct *, const Then *) = {
    NULL, multiply_eight_1, multiply_eight_2, multiply_eight_3, multiply_eight_4};

/* W [o][i] in eight bits, each row's largest number being 127. */
static void round_weights(const Net *net, int l) {
    const int outputs = net->widths[l + 1], inputs = net->widths[l];
    const ptrdiff_t stride = 4 * fours(inputs);
    for (int o = 0; o < outputs; o++) {
        const uint16_t *row = net->weights[l] + (size_t)o * inputs;
        __m512 largest = all(1e-30f);
        for (int pass = 0; pass < 2; pass++) {
            const float most = pass ? _mm512_reduce_max_ps(largest) : 0.0f;
            if (pass) net->scales[l][o] = most / 127.0f;
            for (int i = 0; i < stride; i += LANES) {
                const int left = inputs - i, kept = (int)stride - i;
                const __mmask16 in = lanes_of(left);
                const __m512 w = _mm512_castsi512_ps(
                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, row + i)), 16));
                if (!pass)
                    largest = _mm512_max_ps(largest, _mm512_abs_ps(w));
                else
                    _mm512_mask_cvtsepi32_storeu_epi8(
                        net->eight[l] + o * stride + i,
                        lanes_of(kept),
                        _mm512_cvtps_epi32(_mm512_mul_ps(w, all(127.0f / most))));
            }
        }
    }
}

/* Pairs [i / 2][vector][lane] of what is not negative, of each lane the largest being ``most``, as fours. */
static void round_activations(int V, int width, const uint32_t *pairs, const __m512 *most, uint32_t *out, __m512 *scales) {
    __m512 by[MOST_VECTORS];
    for (int v = 0; v < V; v++) {
        const __m512 largest = _mm512_max_ps(all(1e-30f), most[v]);
        scales[v] = _mm512_mul_ps(largest, all(1.0f / 254.0f)); /* rounded to bfloat16 it may be a bit more */
        by[v] = _mm512_div_ps(all(254.0f), largest);
    }
    const int height = (width + 1) / 2;
    for (int p = 0; p < height; p += 2)
        for (int v = 0; v < V; v++, out += LANES) {
            const __m512i one = _mm512_load_si512(pairs + ((size_t)p * V + v) * LANES);
            const __m512i two = p + 1 < height ? _mm512_load_si512(pairs + ((size_t)(p + 1) * V + v) * LANES)
                                               : _mm512_setzero_si512();
            __m512i four = _mm512_cvtps_epi32(_mm512_mul_ps(one_of(one, 0), by[v]));
            four = _mm512_or_si512(
                four, _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(one_of(one, 1), by[v])), 8));
            four = _mm512_or_si512(
                four, _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(one_of(two, 0), by[v])), 16));
            four = _mm512_or_si512(
                four, _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(one_of(two, 1), by[v])), 24));
            _mm512_store_si512(out, four);
        }
}

/* Eight bits of the layers that are used in them; the weights have changed. */
int mtf_round(const Net *net) {
    for (int l = 0; l < net->layers; l++)
        if (net->eight[l]) round_weights(net, l);
    return 0;
}

/* Actions that nothing is learnt through: those of eq. (7), and the generator's own. */

typedef struct {
    uint32_t *states, *beside; /* pairs of s, and of what is beside it: latents, then actions */
    uint32_t *layers[2];       /* pairs of a layer's ReLU, and of the next one's */
    uint32_t *fours;           /* the same in eight bits */
    float *action;             /* [k][vector][lane] */
    float *of_state[3];        /* what each net's first layer makes of s: [o][lane] */
} Space;

static size_t space_pairs(size_t widest) { return (widest + 3) / 2 * MOST_VECTORS * LANES; }

static size_t space_numbers(size_t widest) {
    return 5 * space_pairs(widest) + widest * LANES * (MOST_VECTORS + 3) + 9 * LANES;
}

static Space space_of(size_t widest) {
    Space space = {.action = take(widest * LANES * MOST_VECTORS)};
    uint32_t **const kept[] = {&space.states, &space.beside, &space.layers[0], &space.layers[1], &space.fours};
    for (int i = 0; i < 5; i++) *kept[i] = take(space_pairs(widest));
    for (int j = 0; j < 3; j++) space.of_state[j] = take(widest * LANES);
    return space;
}

static void pair_up(uint32_t *pairs, int V, const float *action, int k) {
    for (int i = 0; i < k; i += 2)
        for (int v = 0; v < V; v++, pairs += LANES) {
            const float *even = action + ((size_t)i * V + v) * LANES;
            const __m512 odd = i + 1 < k ? _mm512_load_ps(even + V * LANES) : _mm512_setzero_ps();
            _mm512_store_si512(pairs, pair_of(_mm512_load_ps(even), odd));
        }
}

/* The hidden layers of V vectors of what is beside the states, of which ``of_state`` holds what the first layer makes
   of their ``d`` columns, the same for all vectors or each one's own; NULL where all columns lie beside. What the
   last layer leaves is left as ``last`` says, if it does. */
static const uint32_t *hidden(int V, const Net *net, int d, const float *of_state, int own, const Space *space,
                              const Then *last) {
    const uint32_t *x = space->beside;
    __m512 most[2][MOST_VECTORS];
    for (int l = 0; l + 1 < net->layers; l++) {
        const int followed = l + 2 < net->layers, skipped = l ? 0 : d;
        const Then kept = {.kind = RELU, .pairs = space->layers[l % 2],
                           .most = followed && net->eight[l + 1] ? most[l % 2] : NULL};
        const Then *then = last && !followed ? last : &kept;
        if (kept.most)
            for (int v = 0; v < V; v++) most[l % 2][v] = _mm512_setzero_ps();
        if (l && net->eight[l]) {
            EightProduct product = {.weights = net->eight[l], .stride = 4 * fours(net->widths[l]),
                                    .by_output = net->scales[l], .fours = space->fours, .bias = net->biases[l],
                                    .outputs = net->widths[l + 1]};
            round_activations(V, net->widths[l], x, most[(l - 1) % 2], space->fours, product.scales);
            multiply_eight[V](&product, then);
        } else {
            Product product = layer_of(net, l, skipped, net->widths[l] - skipped, V, x, l ? NULL : of_state);
            product.starts = !l && own;
            multiply[V](&product, then);
        }
        x = space->layers[l % 2];
    }
    return x;
}

/* tanh of a net's outputs into space->action. */
static void bounded_outputs(int V, const Net *net, int d, const float *of_state, const Space *space) {
    const int l = net->layers - 1, k = net->widths[l + 1];
    const Product product = layer_of(net, l, 0, net->widths[l], V, hidden(V, net, d, of_state, 0, space, NULL), NULL);
    multiply[V](&product, &(Then){.kind = LINEAR, .linear = space->action, .by_output = V * LANES, .last = 0xFFFF});
    for (float *at = space->action; at < space->action + (size_t)k * V * LANES; at += LANES)
        _mm512_store_ps(at, hyperbolic_tangent(_mm512_load_ps(at)));
}

/* What each net's first layer makes of 16 states [m][d], of which ``count`` are there: [o][lane]. */
static void of_states(const Net *net, const uint16_t *s, int count, int d, const Space *space, float *out) {
    gather(space->states, 1, 0, s, offsets_of(count, d), d);
    const Product product = layer_of(net, 0, 0, d, 1, space->states, NULL);
    multiply_1(&product, &(Then){.kind = LINEAR, .linear = out, .by_output = LANES, .last = 0xFFFF});
}

/* Candidates of eq. (7), and what the first critic says of them, for bfloat16 s[m][d] and x[m][n][width], which are
   latents of the decoder or, where that is NULL, actions. Into pairs[m / 16][n][k / 2][lane] the moved actions, into
   q[m / 16][n][lane] Q'_1. Returns 0, or 1 where there is no memory. */
int mtf_candidates(const Net *decoder, const Net *perturbation, const Net *critic, const uint16_t *s, const uint16_t *x,
                   int32_t m, int32_t d, int32_t n, int32_t width, float rho, uint32_t *pairs, float *q) {
    const Net *const nets[3] = {perturbation, critic, decoder};
    const int k = perturbation->widths[perturbation->layers], height = (int)pairs_of(k);
    size_t widest = (size_t)(d > width ? d : width);
    for (int j = 0; j < 3; j++)
        if (nets[j] && widest_of(nets[j]) > widest) widest = widest_of(nets[j]);
    if (!arena_of(4 * space_numbers(widest))) return 1;
    const Space space = space_of(widest);
    for (int at = 0; at < m; at += LANES) {
        const int count = m - at < LANES ? m - at : LANES;
        const __m512i offsets = offsets_of(count, n * width);
        for (int j = 0; j < 3; j++)
            if (nets[j]) of_states(nets[j], s + (size_t)at * d, count, d, &space, space.of_state[j]);
        /* as many at a time as make the groups alike */
        const int groups = (n + MOST_VECTORS - 1) / MOST_VECTORS;
        for (int group = 0, first = 0; group < groups; group++) {
            const int V = (n - first) / (groups - group);
            for (int v = 0; v < V; v++)
                gather(space.beside, V, v, x + ((size_t)at * n + (first + v)) * width, offsets, width);
            if (decoder) {
                bounded_outputs(V, decoder, d, space.of_state[2], &space);
                pair_up(space.beside, V, space.action, k);
            }
            bounded_outputs(V, perturbation, d, space.of_state[0], &space);
            for (int i = 0; i < k; i++)
                for (int v = 0; v < V; v++) {
                    float *action = space.action + ((size_t)i * V + v) * LANES;
                    const __m512 a = one_of(_mm512_load_si512(space.beside + ((size_t)i / 2 * V + v) * LANES), i % 2);
                    _mm512_store_ps(action, between(-1.0f, _mm512_fmadd_ps(all(rho), _mm512_load_ps(action), a), 1.0f));
                }
            pair_up(space.beside, V, space.action, k);
            __m512 value[MOST_VECTORS];
            for (int v = 0; v < V; v++) value[v] = all(critic->last_bias[0]);
            hidden(V, critic, d, space.of_state[1], 0, &space,
                   &(Then){.kind = DOT, .dot = value, .weight = critic->last_weight});
            for (int v = 0; v < V; v++, first++) {
                const size_t which = (size_t)at / LANES * n + first;
                for (int i = 0; i < height; i++)
                    _mm512_storeu_si512(pairs + (which * height + i) * LANES,
                                        _mm512_load_si512(space.beside + ((size_t)i * V + v) * LANES));
                _mm512_storeu_ps(q + which * LANES, value[v]);
            }
        }
    }
    return 0;
}

/* What Q'_1 says of a state's candidate i is LANES * i numbers further. */
static const float *first_of(const float *q, int state, int n) {
    return q + (size_t)(state / LANES) * n * LANES + state % LANES;
}

/* Rows of ``outputs`` numbers, one a lane, as [o][V][lane]. */
static void columns_of(const float *const rows[LANES], int outputs, int V, float *out) {
    for (int o = 0; o < outputs; o += LANES) {
        __m512i r[16];
        UNROLL for (int lane = 0; lane < 16; lane++) r[lane] = _mm512_load_si512(rows[lane] + o);
        transpose(r);
        for (int i = 0; i < LANES && o + i < outputs; i++)
            _mm512_store_si512(out + (size_t)(o + i) * V * LANES, r[i]);
    }
}

/* Eq. (7) into best, for the states from ``from`` up to ``to``: the largest of what the smaller Q' of each candidate is,
   after what mtf_candidates left of all. The second critic is asked for a state's candidates in the order of Q'_1,
   until none that is left can be larger: for less than half of them where the two critics have nothing in common. */
int mtf_best(const Net *critic, const uint16_t *s, const uint32_t *pairs, const float *q, int32_t from, int32_t to,
             int32_t d, int32_t n, int32_t k, float *best) {
    const int height = (int)pairs_of(k), outputs = critic->widths[1];
    const size_t widest = larger(widest_of(critic), (size_t)d), stride = padded(outputs);
    const int m = to - from;
    const size_t starts = stride * LANES * MOST_VECTORS, blocks = ((size_t)m + LANES - 1) / LANES;
    if (!arena_of(4 * (space_numbers(widest) + starts + blocks * LANES * (stride + (size_t)n + 3) + 5 * LANES))) return 1;
    const Space space = space_of(widest);
    float *start = take(starts), *of_state = take(blocks * LANES * stride);
    int32_t *order = take(blocks * LANES * (size_t)n), *rank = take(blocks * LANES), *active = take(blocks * LANES);
    for (size_t b = 0; b < blocks; b++) {
        const int count = m - (int)b * LANES < LANES ? m - (int)b * LANES : LANES;
        of_states(critic, s + ((size_t)from + b * LANES) * (size_t)d, count, d, &space, space.of_state[0]);
        for (size_t o = 0; o < stride; o += LANES) { /* what lies behind the outputs is not read */
            __m512i r[16];
            UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(space.of_state[0] + (o + i) * LANES);
            transpose(r);
            UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(of_state + (b * LANES + i) * stride + o, r[i]);
        }
    }
    int left = 0;
    for (int state = 0; state < m; state++) {
        const float *own = first_of(q, from + state, n);
        int32_t *in_order = order + (size_t)state * n;
        for (int i = 0; i < n; i++) { /* what is no number comes first */
            int at = i;
            for (; at > 0; at--) {
                const float before = own[in_order[at - 1] * LANES];
                if (own[i * LANES] <= before || isnan(before)) break;
                in_order[at] = in_order[at - 1];
            }
            in_order[at] = i;
        }
        best[from + state] = -INFINITY;
        rank[state] = 0;
        active[left++] = state;
    }
    while (left) {
        int still = 0;
        for (int at = 0; at < left; at += MOST_VECTORS * LANES) {
            const int items = left - at < MOST_VECTORS * LANES ? left - at : MOST_VECTORS * LANES;
            const int V = (items + LANES - 1) / LANES;
            __m512 value[MOST_VECTORS];
            float second[MOST_VECTORS * LANES];
            for (int v = 0; v < V; v++) {
                const float *rows[LANES];
                int32_t offset[LANES];
                for (int lane = 0; lane < LANES; lane++) { /* lanes without one repeat the last */
                    const int item = v * LANES + lane, state = active[at + (item < items ? item : items - 1)];
                    const size_t which =
                        (size_t)((from + state) / LANES) * n + order[(size_t)state * n + rank[state]];
                    rows[lane] = of_state + (size_t)state * stride;
                    offset[lane] = (int32_t)(which * height * LANES) + (from + state) % LANES;
                }
                const __m512i offsets = _mm512_loadu_si512(offset);
                for (int i = 0; i < height; i++)
                    _mm512_store_si512(space.beside + ((size_t)i * V + v) * LANES,
                                       _mm512_i32gather_epi32(offsets, pairs + (size_t)i * LANES, 4));
                columns_of(rows, outputs, V, start + (size_t)v * LANES);
                value[v] = all(critic->last_bias[0]);
            }
            hidden(V, critic, d, start, 1, &space, &(Then){.kind = DOT, .dot = value, .weight = critic->last_weight});
            for (int v = 0; v < V; v++) _mm512_storeu_ps(second + v * LANES, value[v]);
            for (int item = 0; item < items; item++) {
                const int state = active[at + item];
                const float *own = first_of(q, from + state, n);
                float *largest = best + from + state;
                const int32_t *in_order = order + (size_t)state * n;
                const float first = own[in_order[rank[state]] * LANES];
                const float smaller = isnan(first) || first < second[item] ? first : second[item];
                if (isnan(smaller) || smaller > *largest) *largest = smaller;
                const int next = ++rank[state];
                if (!isnan(smaller) && next < n && own[in_order[next] * LANES] > *largest) active[still++] = state;
            }
        }
        left = still;
    }
    return 0;
}

/* Gradients. A batch has ``vectors`` vectors of rows; the last one's lanes without a row repeat the last row, and
   their gradients are nothing. */

typedef struct {
    int rows, vectors;
    uint32_t *x[MOST_LAYERS]; /* pairs of each layer's input, block by block */
    float *y;                 /* the outputs, [o][row] */
} Pass;

typedef struct {
    uint32_t *pairs[2]; /* of the gradient by a layer's outputs, block by block, and by its input */
    uint16_t *rows[2];  /* the same, [o][row] */
    uint32_t *weight;   /* W as pairs of outputs, [o / 2][i] */
    uint32_t *input;    /* x as pairs of rows, [row / 2][i] */
} Scratch;


static size_t pass_numbers(const Net *net, int vectors) {
    size_t numbers = 0;
    for (int l = 0; l < net->layers; l++) numbers += pairs_of(net->widths[l]) * (size_t)vectors * LANES;
    return numbers + (size_t)net->widths[net->layers] * (size_t)vectors * LANES;
}

static size_t scratch_numbers(const Net *net, int vectors) {
    const size_t widest = widest_of(net), rows = (size_t)vectors * LANES;
    return 2 * (widest + 2) / 2 * rows + 2 * (widest + 1) * rows / 2 + (widest + 2) / 2 * widest +
           rows / 2 * padded((int)widest) + 8 * LANES;
}

static Pass pass_of(const Net *net, int rows) {
    Pass pass = {.rows = rows, .vectors = (rows + LANES - 1) / LANES};
    for (int l = 0; l < net->layers; l++) pass.x[l] = take(pairs_of(net->widths[l]) * (size_t)pass.vectors * LANES);
    pass.y = take((size_t)net->widths[net->layers] * (size_t)pass.vectors * LANES);
    return pass;
}

static Scratch scratch_of(const Net *net, int vectors) {
    const size_t widest = widest_of(net), rows = (size_t)vectors * LANES;
    Scratch s;
    for (int i = 0; i < 2; i++) s.pairs[i] = take((widest + 2) / 2 * rows);
    for (int i = 0; i < 2; i++) s.rows[i] = take((widest + 1) * rows / 2);
    s.weight = take((widest + 2) / 2 * widest);
    s.input = take(rows / 2 * padded((int)widest));
    return s;
}

static __mmask16 rows_in(const Pass *pass, int vector) {
    return lanes_of(pass->rows - vector * LANES);
}

#define FOR_BLOCKS(at, V, vectors) \
    for (int at = 0, V = 0; V = (vectors) - at < MOST_VECTORS ? (vectors) - at : MOST_VECTORS, at < (vectors); at += V)

/* Where the block from vector ``at`` on of numbers [i][vector][lane] begins. */
#define BLOCK(numbers, height, at) ((numbers) + (size_t)(height) * (size_t)(at) * LANES)

/* Rows [B][stride] of bfloat16 as columns ``column`` to ``column + width`` of x, those before being there. */
static void put_rows(const Pass *pass, uint32_t *x, int height, int column, const uint16_t *rows, int stride, int width) {
    const int shared = column % 2; /* the first one is half of a pair */
    FOR_BLOCKS(at, V, pass->vectors)
        for (int v = 0; v < V; v++) {
            const int row = (at + v) * LANES, count = pass->rows - row < LANES ? pass->rows - row : LANES;
            const uint16_t *from = rows + (size_t)row * stride;
            uint32_t *to = BLOCK(x, height, at) + (size_t)(column / 2) * V * LANES;
            if (shared) {
                for (int lane = 0; lane < LANES; lane++)
                    to[v * LANES + lane] |= (uint32_t)from[(lane < count ? lane : count - 1) * stride] << 16;
                to += V * LANES;
            }
            gather(to, V, v, from + shared, offsets_of(count, stride), width - shared);
        }
}

/* The same of numbers [i][row]. */
static void put_numbers(const Pass *pass, uint32_t *x, int height, int column, const float *numbers, int width) {
    const size_t rows = (size_t)pass->vectors * LANES;
    FOR_BLOCKS(at, V, pass->vectors)
        for (int i = -(column % 2); i < width; i += 2)
            for (int v = 0; v < V; v++) {
                const float *even = numbers + (ptrdiff_t)i * (ptrdiff_t)rows + (ptrdiff_t)(at + v) * LANES;
                uint32_t *to = BLOCK(x, height, at) + ((size_t)(column + i) / 2 * V + v) * LANES;
                _mm512_store_si512(
                    to, pair_of(i < 0 ? one_of(_mm512_load_si512(to), 0) : _mm512_load_ps(even),
                                i + 1 < width ? _mm512_load_ps(even + rows) : _mm512_setzero_ps()));
            }
}

/* O outputs of the last layer in float32: bfloat16 would round a Q of 25 to eighths. */
INLINE void exact_tile(const int O, const Net *net, int o, int V, int v, const uint32_t *x, float *y, size_t rows) {
    const int inputs = net->widths[net->layers - 1];
    const float *weight = net->last_weight + (size_t)o * inputs;
    __m512 sum[12][2];
    UNROLL for (int i = 0; i < O; i++) sum[i][0] = all(net->last_bias[o + i]), sum[i][1] = _mm512_setzero_ps();
    for (int k = 0; k < inputs; k += 2) {
        const __m512i pair = _mm512_load_si512(x + ((size_t)k / 2 * V + v) * LANES);
        const __m512 even = one_of(pair, 0), odd = one_of(pair, 1);
        UNROLL for (int i = 0; i < O; i++) {
            sum[i][0] = _mm512_fmadd_ps(even, all(weight[(size_t)i * inputs + k]), sum[i][0]);
            if (k + 1 < inputs) sum[i][1] = _mm512_fmadd_ps(odd, all(weight[(size_t)i * inputs + k + 1]), sum[i][1]);
        }
    }
    UNROLL for (int i = 0; i < O; i++)
        _mm512_store_ps(y + (size_t)(o + i) * rows, _mm512_add_ps(sum[i][0], sum[i][1]));
}

/* All layers, from the input that lies in x[0] on. */
static void forward(const Net *net, const Pass *pass) {
    const int last = net->layers - 1, outputs = net->widths[net->layers];
    const size_t rows = (size_t)pass->vectors * LANES;
    FOR_BLOCKS(at, V, pass->vectors) {
        for (int l = 0; l < last; l++) {
            const Product product = layer_of(net, l, 0, net->widths[l], V,
                                             BLOCK(pass->x[l], pairs_of(net->widths[l]), at), NULL);
            multiply[V](&product, &(Then){.kind = RELU,
                                          .pairs = BLOCK(pass->x[l + 1], pairs_of(net->widths[l + 1]), at)});
        }
        const uint32_t *x = BLOCK(pass->x[last], pairs_of(net->widths[last]), at);
        for (int v = 0; v < V; v++) {
            float *y = pass->y + (size_t)(at + v) * LANES;
            int o = 0;
            for (; o + 12 <= outputs; o += 12) exact_tile(12, net, o, V, v, x, y, rows);
            for (; o + 4 <= outputs; o += 4) exact_tile(4, net, o, V, v, x, y, rows);
            for (; o < outputs; o++) exact_tile(1, net, o, V, v, x, y, rows);
        }
    }
}

/* Two rows of bfloat16 as pairs: of the first sixteen columns, and of the next. */
INLINE __m512i interleaved(__m512i a, __m512i b, int second) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                         39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(a, second ? _mm512_add_epi16(low, _mm512_set1_epi16(16)) : low, b);
}

/* A layer's input as pairs of rows, [row / 2][i]. */
static void pair_rows(const Pass *pass, const uint32_t *x, int width, uint32_t *out) {
    const int height = (int)pairs_of(width);
    const size_t stride = padded(width);
    FOR_BLOCKS(at, V, pass->vectors)
        for (int v = 0; v < V; v++)
            for (int p = 0; p < height; p += LANES) {
                __m512i r[16];
                UNROLL for (int i = 0; i < 16; i++)
                    r[i] = p + i < height
                               ? _mm512_load_si512(BLOCK(x, height, at) + ((size_t)(p + i) * V + v) * LANES)
                               : _mm512_setzero_si512();
                transpose(r);
                UNROLL for (int i = 0; i < 16; i += 2) {
                    uint32_t *to = out + ((size_t)(at + v) * LANES + i) / 2 * stride + 2 * (size_t)p;
                    _mm512_store_si512(to, interleaved(r[i], r[i + 1], 0));
                    if (2 * (size_t)p + LANES < stride) _mm512_store_si512(to + LANES, interleaved(r[i], r[i + 1], 1));
                }
            }
}

/* Columns ``column`` to ``column + width`` of W [o][i] as pairs of outputs, [o / 2][width]. */
static void pair_outputs(const uint16_t *w, int outputs, int inputs, int column, int width, uint32_t *out) {
    for (int o = 0; o < outputs; o += 2)
        for (int i = 0; i < width; i += 2 * LANES) {
            const int left = width - i;
            const __mmask32 mask = left >= 32 ? 0xFFFFFFFFu : (1u << left) - 1;
            const uint16_t *from = w + (size_t)o * inputs + column + i;
            const __m512i a = _mm512_maskz_loadu_epi16(mask, from);
            const __m512i b = o + 1 < outputs ? _mm512_maskz_loadu_epi16(mask, from + inputs) : _mm512_setzero_si512();
            uint32_t *to = out + (size_t)o / 2 * width + i;
            _mm512_mask_storeu_epi32(to, (__mmask16)mask, interleaved(a, b, 0));
            _mm512_mask_storeu_epi32(to + LANES, (__mmask16)(mask >> 16), interleaved(a, b, 1));
        }
}

/* The product that goes back through W, of which ``weight`` holds pairs of outputs: one output for each column. */
static Product back_through(int outputs, int width, const uint32_t *weight, int V, const uint32_t *gradient) {
    return (Product){.shared = (const uint16_t *)weight, .by_output = 2, .by_pair = 2 * (ptrdiff_t)width,
                     .vectors = gradient, .vectors_by_pair = V * LANES, .pairs = (int)pairs_of(outputs),
                     .outputs = width};
}

/* From the gradient float32[o][row] by the outputs to all parameters' (not where ``learn`` is 0) and, where
   by_input is given, to that [i][row] by the input's columns from ``column`` on. */
static void backward(const Net *net, const Pass *pass, Scratch *s, const float *gradient, int learn, int column,
                     float *by_input) {
    const size_t rows = (size_t)pass->vectors * LANES;
    const int last = net->layers - 1, outputs = net->widths[net->layers];
    put_numbers(pass, s->pairs[last % 2], (int)pairs_of(outputs), 0, gradient, outputs);
    for (size_t i = 0; i < (size_t)outputs * rows; i += LANES)
        _mm256_store_si256((__m256i *)(s->rows[last % 2] + i),
                           (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(gradient + i)));
    for (int l = last; l >= 0; l--) {
        const int out = net->widths[l + 1], in = net->widths[l];
        const uint32_t *pairs = s->pairs[l % 2];
        const uint16_t *own = s->rows[l % 2];
        if (learn) {
            pair_rows(pass, pass->x[l], in, s->input);
            FOR_BLOCKS(at, V, (int)(padded(in) / LANES)) {
                const int left = in - (at + V - 1) * LANES;
                const Product product = {.shared = own, .by_output = (ptrdiff_t)rows, .by_pair = 2,
                                         .vectors = s->input + (size_t)at * LANES,
                                         .vectors_by_pair = (ptrdiff_t)padded(in), .pairs = (int)(rows / 2),
                                         .outputs = out};
                multiply[V](&product, &(Then){.kind = LINEAR, .linear = net->gradients[2 * l] + at * LANES,
                                              .by_output = in,
                                              .last = lanes_of(left)});
            }
            for (int o = 0; o < out; o++) {
                __m512 sum = _mm512_setzero_ps();
                for (size_t row = 0; row < rows; row += LANES)
                    sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(
                        _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)(own + (size_t)o * rows + row))), 16)));
                net->gradients[2 * l + 1][o] = _mm512_reduce_add_ps(sum);
            }
        }
        if (l > 0) {
            pair_outputs(net->weights[l], out, in, 0, in, s->weight);
            FOR_BLOCKS(at, V, pass->vectors) {
                const Product product = back_through(out, in, s->weight, V, BLOCK(pairs, pairs_of(out), at));
                multiply[V](&product, &(Then){.kind = BACK, .pairs = BLOCK(s->pairs[(l - 1) % 2], pairs_of(in), at),
                                              .activity = BLOCK(pass->x[l], pairs_of(in), at),
                                              .rows = s->rows[(l - 1) % 2] + (size_t)at * LANES,
                                              .by_output = (ptrdiff_t)rows});
            }
        } else if (by_input) {
            const int width = in - column;
            pair_outputs(net->weights[0], out, in, column, width, s->weight);
            FOR_BLOCKS(at, V, pass->vectors) {
                const Product product = back_through(out, width, s->weight, V, BLOCK(pairs, pairs_of(out), at));
                multiply[V](&product, &(Then){.kind = LINEAR, .linear = by_input + (size_t)at * LANES,
                                              .by_output = (ptrdiff_t)rows, .last = 0xFFFF});
            }
        }
    }
}

/* A float32 of each row [B][width] at column i. */
static __m512 column_of(const Pass *pass, const float *rows, int vector, int width, int i) {
    const int row = vector * LANES, count = pass->rows - row < LANES ? pass->rows - row : LANES;
    return _mm512_i32gather_ps(offsets_of(count, width), rows + (size_t)row * width + i, sizeof *rows);
}

/* D(s, z) [B][k] in bfloat16, for bfloat16 s [B][stride] and z [B][width]. 1 where there is no memory. */
int mtf_generated(const Net *decoder, const uint16_t *s, int32_t stride, const uint16_t *z, int32_t batch, int32_t d,
                  int32_t width, uint16_t *action) {
    const int vectors = (batch + LANES - 1) / LANES, k = decoder->widths[decoder->layers];
    if (!arena_of(4 * space_numbers(widest_of(decoder)))) return 1;
    const Space space = space_of(widest_of(decoder));
    FOR_BLOCKS(at, V, vectors) {
        const Pass pass = {.rows = batch - at * LANES, .vectors = V};
        put_rows(&pass, space.beside, 0, 0, s + (size_t)at * LANES * stride, stride, d);
        put_rows(&pass, space.beside, 0, d, z + (size_t)at * LANES * width, width, width);
        bounded_outputs(V, decoder, 0, NULL, &space);
        for (int i = 0; i < k; i++)
            for (int v = 0; v < V; v++) {
                uint16_t value[LANES];
                _mm256_storeu_si256((__m256i *)value, (__m256i)_mm512_cvtneps_pbh(
                                                          _mm512_load_ps(space.action + ((size_t)i * V + v) * LANES)));
                for (int lane = 0; lane < LANES && (at + v) * LANES + lane < batch; lane++)
                    action[(size_t)((at + v) * LANES + lane) * k + i] = value[lane];
            }
    }
    return 0;
}

/* Of eq. (3), as BatchRLMTF.imitate: into losses[2] the reconstruction's and KL. */
int mtf_generator_gradient(const Net *encoder, const Net *decoder, const uint16_t *sa, const float *a,
                           const float *noise, int32_t batch, int32_t d, float kl_weight, float *losses) {
    const int vectors = (batch + LANES - 1) / LANES, k = decoder->widths[decoder->layers];
    const int z = encoder->widths[encoder->layers] / 2;
    const size_t rows = (size_t)vectors * LANES;
    if (!arena_of(4 * (pass_numbers(encoder, vectors) + pass_numbers(decoder, vectors) +
                       larger(scratch_numbers(encoder, vectors), scratch_numbers(decoder, vectors)) +
                       (5 * (size_t)z + (size_t)k) * rows) + 64 * 64))
        return 1;
    const Pass to_z = pass_of(encoder, batch), to_a = pass_of(decoder, batch);
    float *std = take((size_t)z * rows), *drawn = take((size_t)z * rows), *d_z = take((size_t)z * rows);
    float *d_out = take(2 * (size_t)z * rows), *d_a = take((size_t)k * rows);
    Scratch scratch = widest_of(encoder) > widest_of(decoder) ? scratch_of(encoder, vectors) : scratch_of(decoder, vectors);
    put_rows(&to_z, to_z.x[0], (int)pairs_of(encoder->widths[0]), 0, sa, d + k, d + k);
    forward(encoder, &to_z);
    float *mean = to_z.y, *raw = to_z.y + (size_t)z * rows;
    __m512 divergence = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int i = 0; i < z; i++)
        for (int v = 0; v < vectors; v++) {
            const size_t at = (size_t)i * rows + (size_t)v * LANES;
            const __m512 log_std = between(-4.0f, _mm512_load_ps(raw + at), 15.0f); /* the BCQ reference's bounds */
            const __m512 m = _mm512_load_ps(mean + at), deviation = exponential(log_std);
            const __m512 e = column_of(&to_z, noise, v, z, i);
            _mm512_store_ps(std + at, deviation);
            _mm512_store_ps(drawn + at, e);
            _mm512_store_ps(d_z + at, _mm512_fmadd_ps(deviation, e, m)); /* z, until its gradient is here */
            __m512 term = _mm512_fmadd_ps(all(2.0f), log_std, all(1.0f));
            term = _mm512_fnmadd_ps(m, m, term);
            term = _mm512_fnmadd_ps(deviation, deviation, term);
            divergence = _mm512_mask_add_ps(divergence, rows_in(&to_z, v), divergence, term);
        }
    const int height = (int)pairs_of(decoder->widths[0]);
    put_rows(&to_a, to_a.x[0], height, 0, sa, d + k, d);
    put_numbers(&to_a, to_a.x[0], height, d, d_z, z);
    forward(decoder, &to_a);
    const float numbers = (float)batch * (float)k;
    for (int i = 0; i < k; i++)
        for (int v = 0; v < vectors; v++) {
            const size_t at = (size_t)i * rows + (size_t)v * LANES;
            const __m512 rebuilt = hyperbolic_tangent(_mm512_load_ps(to_a.y + at));
            const __m512 error = _mm512_maskz_sub_ps(rows_in(&to_a, v), rebuilt, column_of(&to_a, a, v, k, i));
            squares = _mm512_fmadd_ps(error, error, squares);
            const __m512 slope = _mm512_fnmadd_ps(rebuilt, rebuilt, all(1.0f));
            _mm512_store_ps(d_a + at, _mm512_mul_ps(_mm512_mul_ps(error, all(2.0f / numbers)), slope));
        }
    backward(decoder, &to_a, &scratch, d_a, 1, d, d_z);
    const float weight = kl_weight / ((float)batch * (float)z);
    for (int i = 0; i < z; i++)
        for (int v = 0; v < vectors; v++) {
            const size_t at = (size_t)i * rows + (size_t)v * LANES;
            const __mmask16 in = rows_in(&to_z, v);
            const __m512 deviation = _mm512_load_ps(std + at), by_z = _mm512_load_ps(d_z + at);
            const __m512 wide = _mm512_fmsub_ps(deviation, deviation, all(1.0f));
            const __m512 by_log_std = _mm512_fmadd_ps(
                by_z, _mm512_mul_ps(_mm512_load_ps(drawn + at), deviation), _mm512_mul_ps(all(weight), wide));
            const __m512 log_std = _mm512_load_ps(raw + at);
            const __mmask16 free_of_bounds = _mm512_cmp_ps_mask(log_std, between(-4.0f, log_std, 15.0f), _CMP_EQ_OQ);
            _mm512_store_ps(d_out + at, _mm512_maskz_fmadd_ps(in, all(weight), _mm512_load_ps(mean + at), by_z));
            _mm512_store_ps(d_out + (size_t)z * rows + at, _mm512_maskz_mov_ps(in & free_of_bounds, by_log_std));
        }
    backward(encoder, &to_z, &scratch, d_out, 1, 0, NULL);
    losses[0] = _mm512_reduce_add_ps(squares) / numbers;
    losses[1] = -0.5f * _mm512_reduce_add_ps(divergence) / ((float)batch * (float)z);
    return 0;
}

/* Of eq. (5), as BatchRLMTF.perturb: into value[1] the mean of Q_1. */
int mtf_perturbation_gradient(const Net *perturbation, const Net *critic, const uint16_t *s, int32_t stride,
                              const uint16_t *a, int32_t batch, int32_t d, float rho, float *value) {
    const int vectors = (batch + LANES - 1) / LANES, k = perturbation->widths[perturbation->layers];
    const size_t rows = (size_t)vectors * LANES;
    if (!arena_of(4 * (pass_numbers(perturbation, vectors) + pass_numbers(critic, vectors) +
                       larger(scratch_numbers(perturbation, vectors), scratch_numbers(critic, vectors)) +
                       (3 * (size_t)k + 1) * rows) + 64 * 64))
        return 1;
    const Pass to_xi = pass_of(perturbation, batch), to_q = pass_of(critic, batch);
    float *moved = take((size_t)k * rows), *within = take((size_t)k * rows), *d_a = take((size_t)k * rows);
    float *d_q = take(rows);
    Scratch scratch =
        widest_of(perturbation) > widest_of(critic) ? scratch_of(perturbation, vectors) : scratch_of(critic, vectors);
    const int height = (int)pairs_of(d + k);
    put_rows(&to_xi, to_xi.x[0], height, 0, s, stride, d);
    put_rows(&to_xi, to_xi.x[0], height, d, a, k, k);
    forward(perturbation, &to_xi);
    FOR_BLOCKS(at, V, vectors)
        for (int i = 0; i < k; i++)
            for (int v = 0; v < V; v++) {
                const size_t to = (size_t)i * rows + (size_t)(at + v) * LANES;
                const uint32_t *pair = BLOCK(to_xi.x[0], height, at) + ((size_t)(d + i) / 2 * V + v) * LANES; /* of a */
                const __m512 xi = hyperbolic_tangent(_mm512_load_ps(to_xi.y + to));
                const __m512 sum = _mm512_fmadd_ps(all(rho), xi, one_of(_mm512_load_si512(pair), (d + i) % 2));
                _mm512_store_ps(to_xi.y + to, xi);
                _mm512_store_ps(moved + to, sum);
                _mm512_store_ps(within + to, between(-1.0f, sum, 1.0f));
            }
    put_rows(&to_q, to_q.x[0], height, 0, s, stride, d);
    put_numbers(&to_q, to_q.x[0], height, d, within, k);
    forward(critic, &to_q);
    __m512 sum = _mm512_setzero_ps();
    for (int v = 0; v < vectors; v++) {
        const __mmask16 in = rows_in(&to_q, v);
        sum = _mm512_mask_add_ps(sum, in, sum, _mm512_load_ps(to_q.y + (size_t)v * LANES));
        _mm512_store_ps(d_q + (size_t)v * LANES, _mm512_maskz_mov_ps(in, all(-1.0f / (float)batch)));
    }
    backward(critic, &to_q, &scratch, d_q, 0, d, d_a);
    for (size_t at = 0; at < (size_t)k * rows; at += LANES) {
        const __m512 xi = _mm512_load_ps(to_xi.y + at);
        const __mmask16 inside = _mm512_cmp_ps_mask(_mm512_load_ps(moved + at), _mm512_load_ps(within + at), _CMP_EQ_OQ);
        const __m512 slope = _mm512_mul_ps(all(rho), _mm512_fnmadd_ps(xi, xi, all(1.0f)));
        _mm512_store_ps(d_a + at, _mm512_maskz_mul_ps(inside, _mm512_load_ps(d_a + at), slope));
    }
    backward(perturbation, &to_xi, &scratch, d_a, 1, 0, NULL);
    value[0] = _mm512_reduce_add_ps(sum) / (float)batch;
    return 0;
}

/* Of eq. (6) for one critic, as BatchRLMTF.criticise: into losses[2] it and the mean of Q. */
int mtf_critic_gradient(const Net *critic, const uint16_t *sa, const float *y, int32_t batch, float *losses) {
    const int vectors = (batch + LANES - 1) / LANES;
    const size_t rows = (size_t)vectors * LANES;
    if (!arena_of(4 * (pass_numbers(critic, vectors) + scratch_numbers(critic, vectors) + rows) + 64 * 64)) return 1;
    const Pass pass = pass_of(critic, batch);
    float *d_q = take(rows);
    Scratch scratch = scratch_of(critic, vectors);
    put_rows(&pass, pass.x[0], (int)pairs_of(critic->widths[0]), 0, sa, critic->widths[0], critic->widths[0]);
    forward(critic, &pass);
    __m512 squares = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
    for (int v = 0; v < vectors; v++) {
        const __mmask16 in = rows_in(&pass, v);
        const __m512 q = _mm512_load_ps(pass.y + (size_t)v * LANES);
        const __m512 error = _mm512_maskz_sub_ps(in, q, _mm512_maskz_loadu_ps(in, y + (size_t)v * LANES));
        squares = _mm512_fmadd_ps(error, error, squares);
        sum = _mm512_mask_add_ps(sum, in, sum, q);
        _mm512_store_ps(d_q + (size_t)v * LANES, _mm512_mul_ps(error, all(2.0f / (float)batch)));
    }
    backward(critic, &pass, &scratch, d_q, 1, 0, NULL);
    losses[0] = _mm512_reduce_add_ps(squares) / (float)batch;
    losses[1] = _mm512_reduce_add_ps(sum) / (float)batch;
    return 0;
}

/* y = r + gamma (1 - done) Q' of all rows, Q' being best[m] at the ``m`` rows ``on`` and nothing elsewhere, and the mean
   of y. */
int mtf_target(const float *r, const float *done, const float *best, const int64_t *on, int32_t m, int32_t batch,
               float gamma, float *y, float *mean) {
    double sum = 0.0;
    memcpy(y, r, (size_t)batch * sizeof *y);
    for (int i = 0; i < m; i++) y[on[i]] += gamma * (1.0f - done[on[i]]) * best[i];
    for (int i = 0; i < batch; i++) sum += y[i];
    *mean = (float)(sum / batch);
    return 0;
}

/* One step of Adam (Kingma and Ba 2015) with its usual rates of decay on ``count`` parameters and on their rounded
   copy, after ``steps`` others. */
int mtf_adam(float *values, uint16_t *low, const float *gradient, float *mean, float *square, int64_t count, float lr,
             const float *steps) {
    const double step = *steps + 1.0;
    const __m512 tenth = all(0.1f), most = all(0.999f), rest = all(0.001f); /* 1 - beta_1, beta_2, 1 - beta_2 */
    const __m512 size = all((float)(lr / (1.0 - pow(0.9, step))));
    const __m512 by = all((float)(1.0 / sqrt(1.0 - pow(0.999, step))));
    for (int64_t at = 0; at < count; at += LANES) {
        const __mmask16 in = lanes_of(count - at);
        const __m512 g = _mm512_maskz_loadu_ps(in, gradient + at);
        __m512 m = _mm512_maskz_loadu_ps(in, mean + at), v = _mm512_maskz_loadu_ps(in, square + at);
        m = _mm512_fmadd_ps(tenth, _mm512_sub_ps(g, m), m);
        v = _mm512_fmadd_ps(_mm512_mul_ps(rest, g), g, _mm512_mul_ps(most, v));
        const __m512 below = _mm512_fmadd_ps(_mm512_sqrt_ps(v), by, all(1e-8f));
        const __m512 value =
            _mm512_fnmadd_ps(size, _mm512_div_ps(m, below), _mm512_maskz_loadu_ps(in, values + at));
        _mm512_mask_storeu_ps(mean + at, in, m);
        _mm512_mask_storeu_ps(square + at, in, v);
        _mm512_mask_storeu_ps(values + at, in, value);
        _mm256_mask_storeu_epi16(low + at, in, (__m256i)_mm512_cvtneps_pbh(value));
    }
    return 0;
}

/* What a step reads. */

/* Rows ``rows`` [B] of the transitions: into sa [B][d + k] (s, a) with s standardised, in bfloat16; into a [B][k],
   r [B] and done [B]; and of those that do not end a session, their places into on and s' into next_s [M][d].
   Returns M. */
int mtf_rows(const int64_t *rows, int32_t batch, const float *states, const float *next_states, const float *actions,
             const float *rewards, const float *dones, const float *mean, const float *scale, float clip, int32_t d,
             int32_t k, uint16_t *sa, float *a, float *r, float *done, int64_t *on, uint16_t *next_s) {
    int count = 0;
    for (int i = 0; i < batch; i++) {
        if (i + AHEAD < batch) /* these lie anywhere in memory */
            for (int j = 0; j < d; j += LANES) {
                _mm_prefetch((const char *)(states + rows[i + AHEAD] * d + j), _MM_HINT_T0);
                _mm_prefetch((const char *)(next_states + rows[i + AHEAD] * d + j), _MM_HINT_T0);
            }
        r[i] = rewards[rows[i]];
        done[i] = dones[rows[i]];
        const int goes_on = done[i] < 1.0f;
        uint16_t *own = sa + (size_t)i * (size_t)(d + k), *next = next_s + (size_t)count * (size_t)d;
        for (int j = 0; j < d; j += LANES) {
            const __mmask16 in = lanes_of(d - j);
            const __m512 m = _mm512_maskz_loadu_ps(in, mean + j), by = _mm512_mask_loadu_ps(all(1.0f), in, scale + j);
            for (int after = 0; after <= goes_on; after++) {
                const __m512 x = _mm512_maskz_loadu_ps(in, (after ? next_states : states) + rows[i] * d + j);
                const __m512 value = between(-clip, _mm512_div_ps(_mm512_sub_ps(x, m), by), clip);
                _mm256_mask_storeu_epi16((after ? next : own) + j, in, (__m256i)_mm512_cvtneps_pbh(value));
            }
        }
        for (int j = 0; j < k; j += LANES) {
            const __mmask16 in = lanes_of(k - j);
            const __m512 value = _mm512_maskz_loadu_ps(in, actions + rows[i] * k + j);
            _mm512_mask_storeu_ps(a + (size_t)i * (size_t)k + j, in, value);
            _mm256_mask_storeu_epi16(own + d + j, in, (__m256i)_mm512_cvtneps_pbh(value));
        }
        if (goes_on) on[count++] = i;
    }
    return count;
}

/* One round of Philox 4x32 (Salmon et al. 2011): the halves of the product of c and a constant. */
INLINE void halves(__m512i c, uint32_t by, __m512i *high, __m512i *low) {
    const __m512i factor = _mm512_set1_epi64(by), even = _mm512_mul_epu32(c, factor);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(c, 32), factor);
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

/* ln x for 0 < x <= 1, to about 1e-7. */
INLINE __m512 logarithm(__m512 x) {
    __m512 m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero), e = _mm512_getexp_ps(x);
    const __mmask16 large = _mm512_cmp_ps_mask(m, all(1.41421356f), _CMP_GT_OQ);
    m = _mm512_mask_mul_ps(m, large, m, all(0.5f));
    e = _mm512_mask_add_ps(e, large, e, all(1.0f));
    /* ln m = 2 artanh t */
    const __m512 t = _mm512_div_ps(_mm512_sub_ps(m, all(1.0f)), _mm512_add_ps(m, all(1.0f)));
    const __m512 square = _mm512_mul_ps(t, t);
    __m512 series = all(2.0f / 9.0f);
    series = _mm512_fmadd_ps(series, square, all(2.0f / 7.0f));
    series = _mm512_fmadd_ps(series, square, all(2.0f / 5.0f));
    series = _mm512_fmadd_ps(series, square, all(2.0f / 3.0f));
    series = _mm512_fmadd_ps(series, square, all(2.0f));
    return _mm512_fmadd_ps(e, all(0.693147181f), _mm512_mul_ps(series, t));
}

/* Two standard normals of two random integers (Box and Muller 1958). */
INLINE void normals_of(__m512i one, __m512i two, __m512 *first, __m512 *second) {
    /* a multiple of 2^-24 above 0 */
    const __m512 u = _mm512_mul_ps(
        _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_srli_epi32(one, 8), _mm512_set1_epi32(1))), all(0x1p-24f));
    const __m512 radius = _mm512_sqrt_ps(_mm512_mul_ps(all(-2.0f), logarithm(u)));
    /* an angle of x half turns, of which f beside a whole number of quarter turns */
    const __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(two), all(0x1p-31f));
    const __m512 quarters = _mm512_roundscale_ps(_mm512_add_ps(x, x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_mul_ps(_mm512_fnmadd_ps(quarters, all(0.5f), x), all(3.14159265f));
    const __m512 square = _mm512_mul_ps(f, f);
    __m512 sine = all(2.75573192e-6f), cosine = all(2.48015873e-5f);
    sine = _mm512_fmadd_ps(sine, square, all(-1.98412698e-4f));
    sine = _mm512_fmadd_ps(sine, square, all(8.33333333e-3f));
    sine = _mm512_fmadd_ps(sine, square, all(-1.66666667e-1f));
    sine = _mm512_mul_ps(f, _mm512_fmadd_ps(sine, square, all(1.0f)));
    cosine = _mm512_fmadd_ps(cosine, square, all(-1.38888889e-3f));
    cosine = _mm512_fmadd_ps(cosine, square, all(4.16666667e-2f));
    cosine = _mm512_fmadd_ps(cosine, square, all(-0.5f));
    cosine = _mm512_fmadd_ps(cosine, square, all(1.0f));
    const __m512i q = _mm512_cvtps_epi32(quarters);
    const __mmask16 turned = _mm512_test_epi32_mask(q, _mm512_set1_epi32(1));
    const __mmask16 back = _mm512_test_epi32_mask(q, _mm512_set1_epi32(2));
    const __m512 s = _mm512_mask_blend_ps(turned, sine, cosine), c = _mm512_mask_blend_ps(turned, cosine, sine);
    const __mmask16 c_back = back ^ turned; /* of the cosine: in the second and the third quarter */
    *first = _mm512_mul_ps(radius, _mm512_mask_sub_ps(s, back, _mm512_setzero_ps(), s));
    *second = _mm512_mul_ps(radius, _mm512_mask_sub_ps(c, c_back, _mm512_setzero_ps(), c));
}

/* The numbers ``count`` of a stream of standard normals within ± clip, into float32 or, where that is NULL, into
   bfloat16. A stream depends on seed and stream alone, and a number on its place. */
int mtf_normals(uint64_t seed, uint64_t stream, int64_t count, float clip, float *exact, uint16_t *rounded) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t at = 0; at < count; at += 4 * LANES) {
        __m512i c[4] = {_mm512_add_epi32(_mm512_set1_epi32((int)(at / 4)), lanes),
                        _mm512_set1_epi32((int)((uint64_t)(at / 4) >> 32)), _mm512_set1_epi32((int)stream),
                        _mm512_set1_epi32((int)(stream >> 32))};
        uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        for (int round = 0; round < 10; round++, key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u) {
            __m512i high[2], low[2];
            halves(c[0], 0xD2511F53u, &high[0], &low[0]);
            halves(c[2], 0xCD9E8D57u, &high[1], &low[1]);
            c[0] = _mm512_xor_si512(_mm512_xor_si512(high[1], c[1]), _mm512_set1_epi32((int)key[0]));
            c[2] = _mm512_xor_si512(_mm512_xor_si512(high[0], c[3]), _mm512_set1_epi32((int)key[1]));
            c[1] = low[1], c[3] = low[0];
        }
        __m512 normal[4];
        normals_of(c[0], c[1], &normal[0], &normal[1]);
        normals_of(c[2], c[3], &normal[2], &normal[3]);
        for (int i = 0; i < 4 && at + i * LANES < count; i++) {
            const int64_t from = at + i * LANES, left = count - from;
            const __mmask16 in = lanes_of(left);
            const __m512 value = between(-clip, normal[i], clip);
            if (exact)
                _mm512_mask_storeu_ps(exact + from, in, value);
            else
                _mm256_mask_storeu_epi16(rounded + from, in, (__m256i)_mm512_cvtneps_pbh(value));
        }
    }
    return 0;
}

static int64_t nanoseconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether a number that another thread raises is ``wanted`` or more before so many nanoseconds are over. */
int mtf_reaches(const int64_t *number, int64_t wanted, int64_t nanoseconds) {
    const int64_t until = nanoseconds_now() + nanoseconds;
    do {
        for (int look = 0; look < 64; look++, _mm_pause())
            if (__atomic_load_n(number, __ATOMIC_ACQUIRE) >= wanted) return 1;
    } while (nanoseconds_now() < until);
    return 0;
}

int mtf_has_kernels(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#else /* another processor, or a compiler that does not know this one */

int mtf_has_kernels(void) { return 0; }

#endif
