/* Layers of 4-bit weights by the bytes' products of AVX512-VNNI (dmtd_demo/backbone/integers.py),
   of bfloat16 ones by those of AVX512-BF16, and of float32 ones by AVX512 alone
   (dmtd_demo/backbone/row_blocks.py).

Of 4 bits: activations are rounded to 127 steps of the largest of each 32, weights stay the levels
that they are, and the sums of 32 are integers. Of bfloat16 and float32: products are summed up in
float32. A position's sums have one order, whatever is beside it. Hidden states, keys and values are
float where the matrices are, else bfloat16.

Addresses come as integers, and what stays from call to call as the bytes of a struct below. Threads
are those of PyTorch's own OpenMP: it is not linked but found in the process, so import torch first.
Where a thread cannot be had OpenMP ends the process, and after a fork it waits for ever for those
of the parent, both as under PyTorch's own kernels; one thread needs neither.
*/
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* counted up with every change of what is called from outside, and of the structs that are given */
#define VERSION 7
/* inputs that share a step, and rows of a matrix that lie together */
#define GROUP 32
#define ROWS 16
/* positions whose sums are held in registers, and positions that share one reading of a matrix */
#define TOGETHER 8
#define TILE 64
/* keys that are weighed at once, and queries that share one reading of them */
#define KEYS 16
#define QUERIES 8
/* logits that are read again before they leave the first cache */
#define CHUNK 2048
/* bytes that are asked for ahead of their use */
#define AHEAD 4096
/* the size of the largest head */
#define MOST_HEAD 512
#define TARGET __attribute__((target("avx512f")))
#define TARGET_BYTES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#define TARGET_PAIRS \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")))
#define ALWAYS static inline __attribute__((always_inline))
#define INLINE ALWAYS TARGET

/* A matrix [outs, ins] in blocks of ROWS rows, of each block group after group. In 4 bits a group is
   4 x 64 bytes: the levels (0 to 15) of inputs 4 i + k and, in the upper half, 16 + 4 i + k, at byte
   4 row + k of vector i; in 8 bits 8 x 64 bytes likewise, each 128 more than the weight. scales,
   bfloat16: in 4 bits [blocks, groups, ROWS] of (step, middle), a weight being
   (level - 8) step + middle, or of the step alone where `middles` is 0; in 8 bits a step for each
   row. In 16 bits a group is 16 x 64 bytes, of bfloat16, no scales: inputs 2 i and 2 i + 1 of row r
   at place 2 r of vector i. In 32 bits it is 32 x 64 bytes, of float: input i of row r at place r
   of vector i. bias: float or null. */
typedef struct {
    const uint8_t *levels;
    const uint16_t *scales;
    const float *bias;
    int64_t outs, ins, bits, middles;
} Matrix;

/* weight: the norm's, times the root of its size; least: its eps times its size. */
typedef struct {
    const float *weight;
    double least;
} Norm;

/* A decoder layer. of_heads: the QK norm's, [rotated heads, head size], or null. */
typedef struct {
    Matrix qkv, o, gate_up, down;
    Norm before_attention, before_mlp, of_heads;
    int64_t heads, rotated, head_size;
} Layer;

/* Where a layer's keys and values lie, [2 x kv heads, room, head size]. */
typedef struct {
    void *entries;
    int64_t room;
} Place;

/* 32 inputs of a position, of a matrix of 4 or 8 bits: steps; -8 times their sum; what a step is
   worth; that times the sum. Of one of 16 bits: the inputs in bfloat16. Of one of 32: half of
   them. */
typedef union {
    struct {
        int8_t steps[GROUP];
        int32_t start;
        float step, sum;
    };
    uint16_t real[GROUP];
    float whole[GROUP / 2];
} Inputs;

/* So many Inputs a position has of a matrix, or of `ins` inputs of it. */
static int64_t inputs_in(const Matrix *m, int64_t ins) {
    return ins / (m->bits == 32 ? GROUP / 2 : GROUP);
}

static int64_t inputs_of(const Matrix *m) { return inputs_in(m, m->ins); }

INLINE __m512 wide(const uint16_t *x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
}

INLINE void narrow(uint16_t *to, __m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}

/* Numbers that come from outside or go there: floats, or else bfloat16. */
static void *item(const void *x, int64_t i, int floats) {
    return (char *)x + i * (floats ? sizeof(float) : sizeof(uint16_t));
}

INLINE __m512 load(const void *x, int64_t i, int floats) {
    return floats ? _mm512_loadu_ps((const float *)x + i) : wide((const uint16_t *)x + i);
}

INLINE void store(void *to, int64_t i, int floats, __m512 x) {
    if (floats)
        _mm512_storeu_ps((float *)to + i, x);
    else
        narrow((uint16_t *)to + i, x);
}

INLINE __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87)), _mm512_set1_ps(87));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    /* the series, with the coefficients of Cephes' expf */
    __m512 y = _mm512_set1_ps(1.9875691500e-4f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.3981999507e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(8.3334519073e-3f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(4.1665795894e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.6666665459e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.0000001201e-1f));
    y = _mm512_fmadd_ps(y, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(y, n);
}

INLINE __m512 gated(__m512 gate, __m512 up) {
    __m512 turned = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
    return _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(_mm512_set1_ps(1), turned)), up);
}

INLINE void give(const Matrix *m, __m512 a, __m512 b, Inputs *to) {
    if (m->bits == 32) {
        _mm512_storeu_ps(to[0].whole, a);
        _mm512_storeu_ps(to[1].whole, b);
        return;
    }
    if (m->bits == 16) {
        narrow(to->real, a);
        narrow(to->real + 16, b);
        return;
    }
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    __m512 per = _mm512_set1_ps(most > 0 ? 127 / most : 0);
    __m512i i = _mm512_cvtps_epi32(_mm512_mul_ps(a, per));
    __m512i j = _mm512_cvtps_epi32(_mm512_mul_ps(b, per));
    _mm_storeu_si128((__m128i *)to->steps, _mm512_cvtsepi32_epi8(i));
    _mm_storeu_si128((__m128i *)(to->steps + 16), _mm512_cvtsepi32_epi8(j));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(i, j));
    /* unsigned, for it wraps where an input is no number */
    to->start = -8u * (uint32_t)sum;
    to->step = most / 127;
    to->sum = to->step * sum;
}

INLINE __m512 inverse_root(__m512 squares, const Norm *norm) {
    return _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) + (float)norm->least));
}

/* One position's inputs of a matrix, x [ins], after a norm where there is one. */
TARGET static void take(const Matrix *m, const void *x, const Norm *norm, Inputs *to) {
    int64_t size = m->ins;
    const int floats = m->bits == 32;
    __m512 root = _mm512_set1_ps(1);
    if (norm) {
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < size; i += 16)
            squares = _mm512_fmadd_ps(load(x, i, floats), load(x, i, floats), squares);
        root = inverse_root(squares, norm);
    }
    for (int64_t i = 0; i < size; i += GROUP, to += inputs_in(m, GROUP)) {
        __m512 a = load(x, i, floats), b = load(x, i + 16, floats);
        if (norm) {
            a = _mm512_mul_ps(_mm512_mul_ps(a, _mm512_loadu_ps(norm->weight + i)), root);
            b = _mm512_mul_ps(_mm512_mul_ps(b, _mm512_loadu_ps(norm->weight + i + 16)), root);
        }
        give(m, a, b, to);
    }
}

/* ROWS outputs of n positions, the inputs of which lie `groups` apart. bits, middles, n: known to the
   compiler. */
ALWAYS TARGET_BYTES void sums(const int bits, const int middles, const int n, const Matrix *m,
                              int64_t at, const Inputs *x, __m512 *y) {
    const int64_t groups = m->ins / GROUP, bytes = bits * GROUP * ROWS / 8;
    const uint8_t *levels = m->levels + at * groups * bytes;
    const uint16_t *scales = m->scales + (bits == 4 ? at * groups * ROWS * (1 + middles) : at * ROWS);
    const __m512i low = _mm512_set1_epi8(15);
    __m512 sum[TOGETHER];
    for (int p = 0; p < n; p++)
        sum[p] = m->bias ? _mm512_loadu_ps(m->bias + at * ROWS) : _mm512_setzero_ps();
    __m512 step = bits == 8 ? wide(scales) : _mm512_setzero_ps(), middle = step;
    for (int64_t g = 0; g < groups; g++, levels += bytes) {
        __m512i w[8];
        for (int i = 0; i < bits; i++) {
            __m512i held = _mm512_loadu_si512(levels + 64 * i);
            _mm_prefetch((const char *)levels + AHEAD + 64 * i, _MM_HINT_T0);
            w[i] = bits == 8 ? held : _mm512_and_si512(held, low);
            if (bits == 4)
                w[i + 4] = _mm512_and_si512(_mm512_srli_epi16(held, 4), low);
        }
        if (bits == 4 && !middles)
            step = wide(scales + g * ROWS);
        if (bits == 4 && middles) {
            __m512i both = _mm512_loadu_si512(scales + g * ROWS * 2);
            step = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            middle = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
        }
        for (int p = 0; p < n; p++) {
            const Inputs *in = x + p * groups + g;
            __m512i total = _mm512_set1_epi32(bits == 8 ? 16u * (uint32_t)in->start : in->start);
            for (int i = 0; i < 8; i++)
                total = _mm512_dpbusd_epi32(
                    total, w[i], _mm512_set1_epi32(((const int32_t *)in->steps)[i]));
            __m512 worth = _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_set1_ps(in->step));
            sum[p] = _mm512_fmadd_ps(worth, step, sum[p]);
            if (bits == 4 && middles)
                sum[p] = _mm512_fmadd_ps(_mm512_set1_ps(in->sum), middle, sum[p]);
        }
    }
    for (int p = 0; p < n; p++)
        y[p] = sum[p];
}

/* The same in 16 bits, of one block of rows or two that stand beside each other, which share the
   reading of the inputs. */
ALWAYS TARGET_PAIRS void pair_sums(
    const int blocks, const int n, const Matrix *m, int64_t at, const Inputs *x,
    __m512 y[2][TOGETHER]) {
    const int64_t groups = m->ins / GROUP, bytes = groups * 64 * GROUP / 2;
    const uint8_t *held = m->levels + at * bytes;
    __m512 sum[2][TOGETHER];
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < n; p++)
            sum[b][p] = m->bias ? _mm512_loadu_ps(m->bias + (at + b) * ROWS) : _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, held += 64 * GROUP / 2)
        for (int i = 0; i < GROUP / 2; i++) {
            __m512bh w[2];
            for (int b = 0; b < blocks; b++) {
                w[b] = (__m512bh)_mm512_loadu_si512(held + b * bytes + 64 * i);
                /* to the second cache, which waits for more lines at once than the first */
                _mm_prefetch((const char *)held + b * bytes + AHEAD + 64 * i, _MM_HINT_T1);
            }
            for (int p = 0; p < n; p++) {
                int32_t pair = ((const int32_t *)x[p * groups + g].real)[i];
                __m512bh in = (__m512bh)_mm512_set1_epi32(pair);
                for (int b = 0; b < blocks; b++)
                    sum[b][p] = _mm512_dpbf16_ps(sum[b][p], w[b], in);
            }
        }
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < n; p++)
            y[b][p] = sum[b][p];
}

/* The same in 32 bits. */
INLINE void float_sums(const int blocks, const int n, const Matrix *m, int64_t at, const Inputs *x,
                       __m512 y[2][TOGETHER]) {
    const int64_t ins = m->ins, apart = inputs_of(m);
    const float *held = (const float *)m->levels + at * ins * ROWS;
    __m512 sum[2][TOGETHER];
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < n; p++)
            sum[b][p] = m->bias ? _mm512_loadu_ps(m->bias + (at + b) * ROWS) : _mm512_setzero_ps();
    for (int64_t i = 0; i < ins; i++, held += ROWS) {
        __m512 w[2];
        for (int b = 0; b < blocks; b++) {
            w[b] = _mm512_loadu_ps(held + b * ins * ROWS);
            _mm_prefetch((const char *)(held + b * ins * ROWS) + AHEAD, _MM_HINT_T1);
        }
        for (int p = 0; p < n; p++) {
            __m512 in = _mm512_set1_ps(((const float *)(x + p * apart))[i]);
            for (int b = 0; b < blocks; b++)
                sum[b][p] = _mm512_fmadd_ps(w[b], in, sum[b][p]);
        }
    }
    for (int b = 0; b < blocks; b++)
        for (int p = 0; p < n; p++)
            y[b][p] = sum[b][p];
}

#define DENSE(sums, blocks, n) case n: sums(blocks, n, m, at, x, y); break;
#define ALL_DENSE(s, b) switch (n) { DENSE(s, b, 1) DENSE(s, b, 2) DENSE(s, b, 3) DENSE(s, b, 4) \
    DENSE(s, b, 5) DENSE(s, b, 6) DENSE(s, b, 7) DENSE(s, b, 8) }

TARGET_PAIRS static void pair_blocks(const Matrix *m, int64_t at, int blocks, const Inputs *x,
                                     int n, __m512 y[2][TOGETHER]) {
    if (blocks == 2)
        ALL_DENSE(pair_sums, 2)
    else
        ALL_DENSE(pair_sums, 1)
}

TARGET static void float_blocks(const Matrix *m, int64_t at, int blocks, const Inputs *x, int n,
                                __m512 y[2][TOGETHER]) {
    if (blocks == 2)
        ALL_DENSE(float_sums, 2)
    else
        ALL_DENSE(float_sums, 1)
}

#define CASE(bits, middles, n) case n: sums(bits, middles, n, m, at, x, y); break;
#define CASES(b, z) switch (n) { CASE(b, z, 1) CASE(b, z, 2) CASE(b, z, 3) CASE(b, z, 4) \
    CASE(b, z, 5) CASE(b, z, 6) CASE(b, z, 7) CASE(b, z, 8) }

TARGET_BYTES static void block(const Matrix *m, int64_t at, const Inputs *x, int n, __m512 *y) {
    if (m->bits == 8)
        CASES(8, 0)
    else if (m->middles)
        CASES(4, 1)
    else
        CASES(4, 0)
}

/* ROWS outputs of n positions, of one or two blocks from `at` on. */
TARGET static void some_blocks(const Matrix *m, int64_t at, int blocks, const Inputs *x, int n,
                               __m512 y[2][TOGETHER]) {
    if (m->bits == 32)
        float_blocks(m, at, blocks, x, n, y);
    else if (m->bits == 16)
        pair_blocks(m, at, blocks, x, n, y);
    else
        for (int b = 0; b < blocks; b++)
            block(m, at + b, x, n, y[b]);
}

/* This thread's part of so many. */
static void part(int64_t all, int64_t *from, int64_t *to) {
    int me = omp_get_thread_num(), of = omp_get_num_threads();
    *from = all * me / of;
    *to = all * (me + 1) / of;
}

static int least(int64_t a, int64_t b) { return a < b ? a : b; }

/* This thread's rows of x m^T, to y [n, outs], or added to h there. */
TARGET static void multiply(const Matrix *m, const Inputs *x, int64_t n, const void *h, void *y,
                            float *real) {
    int64_t from, to;
    const int floats = m->bits == 32;
    part(m->outs / ROWS, &from, &to);
    /* bytes' blocks one by one, so that what is asked for ahead is what comes next */
    const int most = m->bits >= 16 ? 2 : 1;
    for (int64_t at = from; at < to; at += most)
        for (int64_t p = 0; p < n; p += TOGETHER) {
            __m512 sum[2][TOGETHER];
            int some = least(n - p, TOGETHER), blocks = least(to - at, most);
            some_blocks(m, at, blocks, x + p * inputs_of(m), some, sum);
            for (int b = 0; b < blocks; b++)
                for (int i = 0; i < some; i++) {
                    int64_t here = (p + i) * m->outs + (at + b) * ROWS;
                    if (real)
                        _mm512_storeu_ps(real + here, sum[b][i]);
                    else
                        store(y, here, floats,
                              h ? _mm512_add_ps(load(h, here, floats), sum[b][i]) : sum[b][i]);
                }
        }
}

/* This thread's inputs of `after`, the matrix after gate_up: silu(gate) up. */
TARGET static void multiply_gated(const Matrix *m, const Matrix *after, const Inputs *x, int64_t n,
                                  Inputs *to) {
    int64_t from, stop, blocks = m->outs / 2 / ROWS, groups = m->outs / 2 / GROUP;
    part(groups, &from, &stop);
    for (int64_t g = from; g < stop; g++)
        for (int64_t p = 0; p < n; p += TOGETHER) {
            __m512 gate[2][TOGETHER], up[2][TOGETHER];
            int some = least(n - p, TOGETHER);
            const Inputs *in = x + p * inputs_of(m);
            some_blocks(m, 2 * g, 2, in, some, gate);
            some_blocks(m, blocks + 2 * g, 2, in, some, up);
            for (int i = 0; i < some; i++)
                give(after, gated(gate[0][i], up[0][i]), gated(gate[1][i], up[1][i]),
                     to + (p + i) * inputs_of(after) + inputs_in(after, g * GROUP));
        }
}

TARGET static void take_all(const Matrix *m, const void *x, int64_t n, const Norm *norm,
                            Inputs *to) {
#pragma omp for schedule(static)
    for (int64_t p = 0; p < n; p++)
        take(m, item(x, p * m->ins, m->bits == 32), norm, to + p * inputs_of(m));
}

/* One head: the norm, where there is one, and RoPE, where it is rotated. */
TARGET static void turn(const Layer *l, int64_t head, const float *x, const void *cos,
                        const void *sin, void *y) {
    int64_t size = l->head_size, half = size / 2;
    const int floats = l->qkv.bits == 32;
    float normed[MOST_HEAD];
    if (head < l->rotated && l->of_heads.weight) {
        const Norm *norm = &l->of_heads;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < size; i += 16)
            squares = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i), squares);
        __m512 root = inverse_root(squares, norm);
        for (int64_t i = 0; i < size; i += 16) {
            __m512 weight = _mm512_loadu_ps(norm->weight + head * size + i);
            __m512 here = _mm512_mul_ps(_mm512_loadu_ps(x + i), weight);
            _mm512_storeu_ps(normed + i, _mm512_mul_ps(here, root));
        }
        x = normed;
    }
    for (int64_t i = 0; i < size; i += 16) {
        __m512 here = _mm512_loadu_ps(x + i);
        if (head < l->rotated)
            here = _mm512_fmadd_ps(here, load(cos, i, floats),
                _mm512_mul_ps(_mm512_loadu_ps(x + (i + half) % size), load(sin, i, floats)));
        store(y, i, floats, here);
    }
}

/* 32 neighbours, from place i on: floats as they lie, of bfloat16 those of even places, and those
   of odd ones. */
INLINE void both(const void *x, int64_t i, const int floats, __m512 *even, __m512 *odd) {
    if (floats) {
        *even = load(x, i, 1);
        *odd = load(x, i + 16, 1);
        return;
    }
    __m512i held = _mm512_loadu_si512((const uint16_t *)x + i);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(held, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(held, _mm512_set1_epi32(0xffff0000)));
}

/* [size] to float, each 32 as `both` has them; 16 lie together, `step` apart. */
INLINE void apart(const void *x, int64_t size, const int floats, float *to, int64_t step) {
    for (int64_t i = 0; i < size; i += 32, to += 2 * step) {
        __m512 even, odd;
        both(x, i, floats, &even, &odd);
        _mm512_store_ps(to, even);
        _mm512_store_ps(to + step, odd);
    }
}

/* The sums of two and two vectors' parts of 128 bits, the first's beside the second's. */
INLINE __m512 halved(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* The sum of each of 16 vectors. */
INLINE __m512 totals(const __m512 *x) {
    __m512 four[4];
    for (int i = 0; i < 4; i++) {
        const __m512 *v = x + 4 * i;
        __m512d a = _mm512_castps_pd(
            _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1])));
        __m512d b = _mm512_castps_pd(
            _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3])));
        four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return halved(halved(four[0], four[1]), halved(four[2], four[3]));
}

/* A thread's own room in attention, for a window of so many keys: weights [QUERIES, window], keys
   [size / 16, KEYS, 16], queries [QUERIES, size]. */
static int64_t room_to_attend(int64_t window, int64_t size) {
    return QUERIES * window + (KEYS + QUERIES) * size;
}

/* Up to QUERIES queries of one head of keys, of which each sees `seen` of them: never fewer than
   the one before it. Keys and values from `branch` on lie by themselves, at branch_keys and
   branch_values. What a query sees of the values goes to its `inputs` of the next matrix, or else
   to `plain`. */
typedef struct {
    const Matrix *next;
    int64_t branch;
    const void *branch_keys, *branch_values;
    const void *at[QUERIES];
    int64_t seen[QUERIES];
    Inputs *inputs[QUERIES];
    void *plain[QUERIES];
} Queries;

/* Where the k-th of `trunk`, keys or values of `size`, lies. */
INLINE const void *lies(const Queries *q, const void *trunk, const void *branch, int64_t k,
                        int64_t size, const int floats) {
    return k < q->branch ? item(trunk, k * size, floats)
                         : item(branch, (k - q->branch) * size, floats);
}

/* The exponential of each query's products with the keys that it sees, over the largest of them, into
   weights [n, window]; one over their sums into share [n], no number where a product is none.
   floats: known to the compiler. */
INLINE void weigh(const int floats, const Queries *q, int n, const void *keys, int64_t size,
                  int64_t window, float *weights, float *share) {
    float *few = weights + QUERIES * window, *asked = few + KEYS * size;
    const __m512 scale = _mm512_set1_ps(1 / sqrtf(size));
    const int64_t all = q->seen[n - 1];
    const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512 most[QUERIES];
    __mmask16 none[QUERIES] = {0};
    for (int i = 0; i < n; i++) {
        apart(q->at[i], size, floats, asked + i * size, 16);
        most[i] = _mm512_set1_ps(-INFINITY);
    }
    for (int64_t k = 0; k < all; k += KEYS) {
        /* floats are read where they lie, but for the last ones */
        const int there = floats && k + KEYS <= all && k + KEYS <= q->branch;
        const float *held = there ? (const float *)keys + k * size : few;
        const int64_t by_key = floats ? size : 16, by_part = floats ? 16 : KEYS * 16;
        if (!there)
            for (int64_t j = 0; j < KEYS; j++)
                apart(lies(q, keys, q->branch_keys, least(k + j, all - 1), size, floats), size,
                      floats, few + j * by_key, by_part);
        for (int i = 0; i < n; i++) {
            if (k >= q->seen[i])
                continue;
            __m512 dot[KEYS];
            for (int j = 0; j < KEYS; j++)
                dot[j] = _mm512_setzero_ps();
            for (int64_t at = 0; at < size / 16; at++) {
                __m512 here = _mm512_load_ps(asked + i * size + at * 16);
                const float *part = held + at * by_part;
                for (int j = 0; j < KEYS; j++)
                    dot[j] = _mm512_fmadd_ps(here, _mm512_loadu_ps(part + j * by_key), dot[j]);
            }
            /* what is past the query's own position weighs nothing */
            __mmask16 past = _mm512_cmpge_epi32_mask(place, _mm512_set1_epi32(q->seen[i] - k));
            __m512 x = _mm512_mul_ps(totals(dot), scale);
            x = _mm512_mask_mov_ps(x, past, _mm512_set1_ps(-INFINITY));
            _mm512_store_ps(weights + i * window + k, x);
            most[i] = _mm512_max_ps(most[i], x);
            none[i] |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        }
    }
    for (int i = 0; i < n; i++) {
        float largest = _mm512_reduce_max_ps(most[i]);
        __m512 sum = _mm512_setzero_ps(), top = _mm512_set1_ps(largest);
        for (int64_t k = 0; k < q->seen[i]; k += KEYS) {
            float *here = weights + i * window + k;
            __mmask16 past = _mm512_cmpge_epi32_mask(place, _mm512_set1_epi32(q->seen[i] - k));
            __m512 x = exponential(_mm512_sub_ps(_mm512_load_ps(here), top));
            x = _mm512_mask_mov_ps(x, past, _mm512_setzero_ps());
            _mm512_store_ps(here, x);
            sum = _mm512_add_ps(sum, x);
        }
        share[i] = none[i] || !isfinite(largest) ? NAN : 1 / _mm512_reduce_add_ps(sum);
    }
}

/* What n queries see of values [.., size]. floats, n, parts (of 32, that are summed up at once):
   known to the compiler. */
INLINE void gather(const int floats, const int n, const int parts, const Queries *q,
                   const void *values, int64_t size, int64_t window, const float *weights,
                   const float *share) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t at = 0; at < size; at += 32 * parts) {
        __m512 even[QUERIES][2], odd[QUERIES][2], e, o;
        for (int i = 0; i < n; i++)
            for (int p = 0; p < parts; p++)
                even[i][p] = odd[i][p] = _mm512_setzero_ps();
        for (int64_t k = 0; k < q->seen[0]; k++) {
            const void *held = lies(q, values, q->branch_values, k, size, floats);
            for (int p = 0; p < parts; p++) {
                both(held, at + 32 * p, floats, &e, &o);
                for (int i = 0; i < n; i++) {
                    __m512 weight = _mm512_set1_ps(weights[i * window + k]);
                    even[i][p] = _mm512_fmadd_ps(weight, e, even[i][p]);
                    odd[i][p] = _mm512_fmadd_ps(weight, o, odd[i][p]);
                }
            }
        }
        for (int i = 0; i < n; i++)
            for (int p = 0; p < parts; p++) {
                __m512 *x = &even[i][p], *y = &odd[i][p];
                for (int64_t k = q->seen[0]; k < q->seen[i]; k++) {
                    both(lies(q, values, q->branch_values, k, size, floats), at + 32 * p, floats,
                         &e, &o);
                    __m512 weight = _mm512_set1_ps(weights[i * window + k]);
                    *x = _mm512_fmadd_ps(weight, e, *x);
                    *y = _mm512_fmadd_ps(weight, o, *y);
                }
                *x = _mm512_mul_ps(*x, _mm512_set1_ps(share[i]));
                *y = _mm512_mul_ps(*y, _mm512_set1_ps(share[i]));
                __m512 first = floats ? *x : _mm512_permutex2var_ps(*x, low, *y);
                __m512 second = floats ? *y : _mm512_permutex2var_ps(*x, high, *y);
                int64_t here = at + 32 * p;
                if (q->inputs[i]) {
                    give(q->next, first, second, q->inputs[i] + inputs_in(q->next, here));
                } else {
                    store(q->plain[i], here, floats, first);
                    store(q->plain[i], here + 16, floats, second);
                }
            }
    }
}

#define GATHER(f, parts, n) \
    case n: gather(f, n, parts, q, values, size, window, weights, share); break;
#define TO_FOUR(f, p) GATHER(f, p, 1) GATHER(f, p, 2) GATHER(f, p, 3) GATHER(f, p, 4)
#define TO_EIGHT(f, p) GATHER(f, p, 5) GATHER(f, p, 6) GATHER(f, p, 7) GATHER(f, p, 8)
#define ALL(f) \
    weigh(f, q, n, keys, size, window, weights, share); \
    if (size % 64 || n > 4) \
        switch (n) { TO_FOUR(f, 1) TO_EIGHT(f, 1) } \
    else \
        switch (n) { TO_FOUR(f, 2) }

/* What they see of keys and values [.., size]. A query's result does not depend on the others. */
TARGET static void attend(int floats, const Queries *q, int n, const void *keys,
                          const void *values, int64_t size, int64_t window, float *weights) {
    float share[QUERIES];
    if (floats) {
        ALL(1)
    } else {
        ALL(0)
    }
}

/* 16 numbers of `size`, from place i on; minus infinity past their end. */
INLINE __m512 up_to(const void *x, int64_t i, int64_t size, const int floats) {
    if (i + 16 <= size)
        return load(x, i, floats);
    float few[16];
    for (int j = 0; j < 16; j++) {
        uint32_t bits = 0xff800000;
        if (i + j < size && floats)
            bits = ((const uint32_t *)x)[i + j];
        else if (i + j < size)
            bits = (uint32_t)((const uint16_t *)x)[i + j] << 16;
        memcpy(few + j, &bits, sizeof(bits));
    }
    return _mm512_loadu_ps(few);
}

/* A row's largest entry, the first of them where several are, and the natural logarithm of its
   probability: NaN where an entry is NaN or infinite, but for entries of no probability, which are
   minus infinity, unless all are. */
typedef struct {
    int64_t at;
    float logprob;
} Likeliest;

/* floats: known to the compiler. */
INLINE Likeliest find_likeliest(const int floats, const void *x, int64_t size) {
    float top = -INFINITY;
    __m512 sum = _mm512_setzero_ps();
    __mmask16 none = 0;
    int64_t at = 0, end;
    for (int64_t from = 0; from < size; from = end) {
        end = size - from < CHUNK ? size : from + CHUNK;
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int64_t i = from; i < end; i += 16) {
            __m512 here = up_to(x, i, size, floats);
            none |= _mm512_cmp_ps_mask(here, here, _CMP_UNORD_Q);
            most = _mm512_max_ps(here, most);
        }
        float largest = _mm512_reduce_max_ps(most);
        if (largest > top) {
            sum = _mm512_mul_ps(sum, exponential(_mm512_set1_ps(top - largest)));
            top = largest;
            at = from;
        }
        for (int64_t i = from; i < end; i += 16)
            sum = _mm512_add_ps(
                sum, exponential(_mm512_sub_ps(up_to(x, i, size, floats), _mm512_set1_ps(top))));
    }
    if (none || !isfinite(top))
        return (Likeliest){0, NAN};
    for (;; at += 16) {
        __mmask16 found = _mm512_cmp_ps_mask(
            up_to(x, at, size, floats), _mm512_set1_ps(top), _CMP_EQ_OQ);
        if (found)
            return (Likeliest){at + __builtin_ctz(found), 0 - logf(_mm512_reduce_add_ps(sum))};
    }
}

TARGET static Likeliest likeliest_of(int floats, const void *x, int64_t size) {
    return floats ? find_likeliest(1, x, size) : find_likeliest(0, x, size);
}

/* n times `each` of such a size, from a cache line's beginning; null where there is no room. */
static void *room_for(int64_t n, int64_t each, int64_t size) {
    int64_t all;
    if (__builtin_mul_overflow(n, each, &all) || __builtin_mul_overflow(all, size, &all) || all < 0)
        return NULL;
    return aligned_alloc(64, (all / 64 + 1) * 64);
}

static Inputs *inputs(const Matrix *m, int64_t n) {
    return room_for(n, inputs_of(m), sizeof(Inputs));
}

/* The struct that a call begins with, or so many of them where `several` is asked for; null, with
   TypeError, where it is none or where there are not so many arguments. */
static const void *struct_of(PyObject *const *args, Py_ssize_t count, Py_ssize_t due,
                             Py_ssize_t size, Py_ssize_t *several) {
    if (count == due && PyObject_TypeCheck(args[0], &PyBytes_Type)) {
        Py_ssize_t held = PyBytes_Size(args[0]);
        if (several)
            *several = held / size;
        if (several ? held && held % size == 0 : held == size)
            return PyBytes_AsString(args[0]);
    }
    PyErr_Format(PyExc_TypeError, "needs a struct of %zd bytes and %zd numbers", size, due - 1);
    return NULL;
}

/* So many bytes; null, with TypeError, where it is none or another number of them. */
static const void *bytes_of(PyObject *given, Py_ssize_t size) {
    if (PyObject_TypeCheck(given, &PyBytes_Type) && PyBytes_Size(given) == size)
        return PyBytes_AsString(given);
    return PyErr_Format(PyExc_TypeError, "needs %zd bytes for the places of layers", size);
}

/* None, where there was room for everything; else MemoryError, or what an argument raised. */
static PyObject *answer(int done) {
    if (done)
        Py_RETURN_NONE;
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

/* This thread's share of a layer from the inputs of o, `seen`, to its output y [n, hidden]. */
static void finish(const Layer *l, const void *h, const Inputs *seen, int64_t n, void *y,
                   Inputs *in, Inputs *inner) {
    multiply(&l->o, seen, n, h, y, NULL);
#pragma omp barrier
    take_all(&l->gate_up, y, n, &l->before_mlp, in);
    multiply_gated(&l->gate_up, &l->down, in, n, inner);
#pragma omp barrier
    multiply(&l->down, inner, n, y, y, NULL);
#pragma omp barrier
}

/* product(matrix, x, rows, y, threads): x [rows, ins] to y [rows, outs]. */
static PyObject *product(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const Matrix *m = struct_of(args, count, 5, sizeof(Matrix), NULL);
    if (!m)
        return NULL;
    const void *x = PyLong_AsVoidPtr(args[1]);
    int64_t rows = PyLong_AsLong(args[2]);
    void *y = PyLong_AsVoidPtr(args[3]);
    int threads = PyLong_AsLong(args[4]);
    const int floats = m->bits == 32;
    Inputs *in = inputs(m, least(rows, TILE));
    const int able = in && !PyErr_Occurred();
    if (!able)
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    for (int64_t p = 0; p < rows; p += TILE) {
        int64_t n = least(rows - p, TILE);
        take_all(m, item(x, p * m->ins, floats), n, NULL, in);
        multiply(m, in, n, NULL, item(y, p * m->outs, floats), NULL);
#pragma omp barrier
    }
    Py_END_ALLOW_THREADS
end:
    free(in);
    return answer(able);
}

/* heads(layer, h, rows, cos, sin, y, threads): queries and keys, rotated, and values. */
static PyObject *heads(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const Layer *l = struct_of(args, count, 7, sizeof(Layer), NULL);
    if (!l)
        return NULL;
    const Matrix *m = &l->qkv;
    const void *h = PyLong_AsVoidPtr(args[1]);
    int64_t rows = PyLong_AsLong(args[2]), size = l->head_size;
    const void *cos = PyLong_AsVoidPtr(args[3]), *sin = PyLong_AsVoidPtr(args[4]);
    void *y = PyLong_AsVoidPtr(args[5]);
    int threads = PyLong_AsLong(args[6]);
    const int floats = m->bits == 32;
    Inputs *in = inputs(m, least(rows, TILE));
    float *real = room_for(least(rows, TILE), m->outs, sizeof(float));
    const int able = in && real && !PyErr_Occurred();
    if (!able)
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    for (int64_t p = 0; p < rows; p += TILE) {
        int64_t n = least(rows - p, TILE);
        take_all(m, item(h, p * m->ins, floats), n, &l->before_attention, in);
        multiply(m, in, n, NULL, NULL, real);
#pragma omp barrier
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * l->heads; i++) {
            int64_t row = p + i / l->heads;
            turn(l, i % l->heads, real + i * size, item(cos, row * size, floats),
                 item(sin, row * size, floats), item(y, p * m->outs + i * size, floats));
        }
    }
    Py_END_ALLOW_THREADS
end:
    free(in);
    free(real);
    return answer(able);
}

/* rest(layer, h, seen, rows, y, threads): from what attention saw to the layer's output y. */
static PyObject *rest(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const Layer *l = struct_of(args, count, 6, sizeof(Layer), NULL);
    if (!l)
        return NULL;
    const void *h = PyLong_AsVoidPtr(args[1]), *seen = PyLong_AsVoidPtr(args[2]);
    int64_t rows = PyLong_AsLong(args[3]);
    void *y = PyLong_AsVoidPtr(args[4]);
    int threads = PyLong_AsLong(args[5]);
    int64_t tile = least(rows, TILE), hidden = l->o.outs;
    const int floats = l->o.bits == 32;
    Inputs *in = inputs(&l->gate_up, tile), *of_seen = inputs(&l->o, tile);
    Inputs *inner = inputs(&l->down, tile);
    const int able = in && of_seen && inner && !PyErr_Occurred();
    if (!able)
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    for (int64_t p = 0; p < rows; p += TILE) {
        int64_t n = least(rows - p, TILE);
        take_all(&l->o, item(seen, p * l->o.ins, floats), n, NULL, of_seen);
        finish(l, item(h, p * hidden, floats), of_seen, n, item(y, p * hidden, floats), in,
               inner);
    }
    Py_END_ALLOW_THREADS
end:
    free(in);
    free(of_seen);
    free(inner);
    return answer(able);
}

/* A tree of positions: the first `trunk` of a text are seen by all; of those after them, each names
   its parent among them, or -1. parents: null where positions follow each other. */
typedef struct {
    int64_t trunk;
    const int64_t *parents;
} Tree;

/* Copy the keys and values that a place of the tree sees behind the trunk, its ancestors' and its
   own, in their order, to branch and what `most` places need after it; returns how many. keys,
   values: of one head. */
static int64_t copy_branch(const Tree *tree, int64_t place, const void *keys, const void *values,
                           int64_t bytes, int64_t most, char *branch) {
    int64_t depth = 0;
    for (int64_t i = place; i >= 0; i = tree->parents[i])
        depth++;
    int64_t at = depth;
    for (int64_t i = place; i >= 0; i = tree->parents[i]) {
        at--;
        memcpy(branch + at * bytes, (const char *)keys + (tree->trunk + i) * bytes, bytes);
        memcpy(branch + (most + at) * bytes, (const char *)values + (tree->trunk + i) * bytes,
               bytes);
    }
    return depth;
}

/* This thread's share of one layer for a few positions after `past` others. asked, real: room for
   queries and for what turn is given; mine: the thread's own for attention, with a tree's branch
   at its end. */
static void run(const Layer *l, const Place *held, const void *h, int64_t rows, const void *cos,
                const void *sin, int64_t past, const Tree *tree, void *y, Inputs *in,
                Inputs *of_seen, Inputs *inner, float *real, void *asked, float *mine) {
    int64_t size = l->head_size, room = held->room;
    int64_t queries = l->o.ins / size, kv_heads = (l->heads - queries) / 2;
    int64_t group = queries / kv_heads, window = (past + rows + KEYS - 1) / KEYS * KEYS;
    const int floats = l->qkv.bits == 32;
    void *entries = held->entries;
    take_all(&l->qkv, h, rows, &l->before_attention, in);
    multiply(&l->qkv, in, rows, NULL, NULL, real);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * l->heads; i++) {
        int64_t row = i / l->heads, head = i % l->heads;
        turn(l, head, real + i * size, item(cos, row * size, floats),
             item(sin, row * size, floats),
             head < queries ? item(asked, (row * queries + head) * size, floats)
                            : item(entries, ((head - queries) * room + past + row) * size, floats));
    }
    int64_t from, to, each = rows * group;
    part(kv_heads * each, &from, &to);
    while (from < to) {
        int64_t head = from / each, first = from % each / group;
        /* positions of a tree do not share what they see */
        int64_t last = tree->parents ? head * each + (first + 1) * group : (head + 1) * each;
        int64_t left = least(to, last) - from;
        int64_t calls = (left + QUERIES - 1) / QUERIES, n = (left + calls - 1) / calls;
        const void *keys = item(entries, head * room * size, floats);
        const void *values = item(entries, (head + kv_heads) * room * size, floats);
        Queries few = {.next = &l->o, .branch = INT64_MAX};
        int64_t behind = 0;
        if (tree->parents) {
            char *branch = (char *)(mine + room_to_attend(window, size));
            int64_t most = past + rows - tree->trunk, bytes = size * (floats ? 4 : 2);
            behind = copy_branch(tree, past + first - tree->trunk, keys, values, bytes, most, branch);
            few.branch = tree->trunk;
            few.branch_keys = branch;
            few.branch_values = branch + most * bytes;
        }
        for (int i = 0; i < n; i++, from++) {
            int64_t row = from % each / group, query = head * group + from % group;
            few.at[i] = item(asked, (row * queries + query) * size, floats);
            few.seen[i] = tree->parents ? tree->trunk + behind : past + row + 1;
            few.inputs[i] = of_seen + inputs_in(&l->o, (row * queries + query) * size);
        }
        attend(floats, &few, n, keys, values, size, window, mine);
    }
#pragma omp barrier
    finish(l, h, of_seen, rows, y, in, inner);
}

/* whole(layers, places, h, rows, cos, sin, past, y, threads, trunk, parents): layers of one shape,
   one after another, for up to TILE positions after `past` others; keys and values go to the place
   of each. parents: 0, or the address of those of a tree's positions, which begin behind `trunk`
   others and end with these. */
static PyObject *whole(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t layers;
    const Layer *l = struct_of(args, count, 11, sizeof(Layer), &layers);
    if (!l)
        return NULL;
    const Place *places = bytes_of(args[1], layers * sizeof(Place));
    if (!places)
        return NULL;
    const void *h = PyLong_AsVoidPtr(args[2]);
    int64_t rows = PyLong_AsLong(args[3]), size = l->head_size;
    const void *cos = PyLong_AsVoidPtr(args[4]), *sin = PyLong_AsVoidPtr(args[5]);
    int64_t past = PyLong_AsLong(args[6]);
    void *y = PyLong_AsVoidPtr(args[7]);
    int threads = PyLong_AsLong(args[8]);
    const Tree tree = {PyLong_AsLong(args[9]), PyLong_AsVoidPtr(args[10])};
    int64_t own = room_to_attend((past + rows + KEYS - 1) / KEYS * KEYS, size);
    if (tree.parents)
        own += 2 * (past + rows - tree.trunk) * size;
    Inputs *in = inputs(&l->qkv, rows), *of_seen = inputs(&l->o, rows);
    Inputs *inner = inputs(&l->down, rows);
    float *real = room_for(rows, l->qkv.outs, sizeof(float));
    float *weights = room_for(threads, own, sizeof(float));
    void *asked = room_for(rows, l->o.ins, sizeof(float));
    const int able = in && of_seen && inner && real && weights && asked && !PyErr_Occurred();
    if (!able)
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    for (Py_ssize_t i = 0; i < layers; i++)
        run(l + i, places + i, i ? y : h, rows, cos, sin, past, &tree, y, in, of_seen, inner, real,
            asked, weights + omp_get_thread_num() * own);
    Py_END_ALLOW_THREADS
end:
    free(in);
    free(of_seen);
    free(inner);
    free(real);
    free(weights);
    free(asked);
    return answer(able);
}

/* attend(heads, apart, entries, room, texts, kv_heads, group, size, seen, y, floats, threads): one
   further position of each of so many texts. heads [texts, kv heads x (group + 2), size], texts
   `apart` from each other: queries, then keys and values, which are written to place seen[text] - 1
   of entries [texts, 2 x kv heads, room, size]. The queries see the first seen[text] there; y
   [texts, kv heads x group, size]. floats: 1 where all are, 0 where they are bfloat16. */
static PyObject *attend_texts(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 12)
        return PyErr_Format(PyExc_TypeError, "needs 12 numbers");
    const void *heads = PyLong_AsVoidPtr(args[0]);
    void *entries = PyLong_AsVoidPtr(args[2]);
    int64_t apart = PyLong_AsLong(args[1]), room = PyLong_AsLong(args[3]);
    int64_t texts = PyLong_AsLong(args[4]), kv_heads = PyLong_AsLong(args[5]);
    int64_t group = PyLong_AsLong(args[6]), size = PyLong_AsLong(args[7]);
    const int64_t *seen = PyLong_AsVoidPtr(args[8]);
    void *y = PyLong_AsVoidPtr(args[9]);
    int floats = PyLong_AsLong(args[10]), threads = PyLong_AsLong(args[11]);
    int64_t window = (room + KEYS - 1) / KEYS * KEYS, bytes = floats ? 4 * size : 2 * size;
    float *weights = room_for(threads, room_to_attend(window, size), sizeof(float));
    const int able = weights && !PyErr_Occurred();
    if (!able)
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads)
    {
        float *mine = weights + omp_get_thread_num() * room_to_attend(window, size);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < texts * kv_heads; i++) {
            int64_t text = i / kv_heads, head = i % kv_heads, place = (seen[text] - 1) * size;
            int64_t new = text * apart + (kv_heads * group + head) * size;
            void *keys = item(entries, (text * 2 * kv_heads + head) * room * size, floats);
            void *values = item(keys, kv_heads * room * size, floats);
            memcpy(item(keys, place, floats), item(heads, new, floats), bytes);
            memcpy(item(values, place, floats), item(heads, new + kv_heads * size, floats), bytes);
            for (int64_t first = 0; first < group; first += QUERIES) {
                Queries few = {.branch = INT64_MAX};
                int n = least(group - first, QUERIES);
                for (int j = 0; j < n; j++) {
                    int64_t query = head * group + first + j;
                    few.at[j] = item(heads, text * apart + query * size, floats);
                    few.seen[j] = seen[text];
                    few.plain[j] = item(y, (text * kv_heads * group + query) * size, floats);
                }
                attend(floats, &few, n, keys, values, size, window, mine);
            }
        }
    }
    Py_END_ALLOW_THREADS
end:
    free(weights);
    return answer(able);
}

/* norm(norm, x, rows, size, floats, y, threads): x [rows, size] to y, after a norm. floats: as
   `attend` has it. */
static PyObject *norm(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const Norm *by = struct_of(args, count, 7, sizeof(Norm), NULL);
    if (!by)
        return NULL;
    const void *x = PyLong_AsVoidPtr(args[1]);
    int64_t rows = PyLong_AsLong(args[2]), size = PyLong_AsLong(args[3]);
    int floats = PyLong_AsLong(args[4]), threads = PyLong_AsLong(args[6]);
    /* a matrix of 16 or 32 bits takes the numbers themselves */
    const Matrix taker = {.ins = size, .bits = floats ? 32 : 16};
    Inputs *y = PyLong_AsVoidPtr(args[5]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads) if (rows > 1)
    take_all(&taker, x, rows, by, y);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* likeliest(logits, rows, size, floats, threads): of logits [rows, size] a list of pairs, each row's
   Likeliest. floats: as `attend` has it. */
static PyObject *likeliest(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 5)
        return PyErr_Format(PyExc_TypeError, "needs 5 numbers");
    const void *x = PyLong_AsVoidPtr(args[0]);
    int64_t rows = PyLong_AsLong(args[1]), size = PyLong_AsLong(args[2]);
    int floats = PyLong_AsLong(args[3]), threads = PyLong_AsLong(args[4]);
    Likeliest *best = room_for(rows, 1, sizeof(Likeliest));
    PyObject *list = NULL;
    if (!best || PyErr_Occurred())
        goto end;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
    for (int64_t i = 0; i < rows; i++)
        best[i] = likeliest_of(floats, item(x, i * size, floats), size);
    Py_END_ALLOW_THREADS
    list = PyList_New(rows);
    for (int64_t i = 0; list && i < rows; i++) {
        PyObject *pair = Py_BuildValue("(Ld)", (long long)best[i].at, (double)best[i].logprob);
        if (!pair || PyList_SetItem(list, i, pair)) {
            Py_DECREF(list);
            list = NULL;
        }
    }
end:
    free(best);
    return list || PyErr_Occurred() ? list : PyErr_NoMemory();
}

/* runs_here(): whether this CPU has the instructions for matrices of 32 bits, and for attention. */
static PyObject *runs_here(PyObject *self, PyObject *none) {
    __builtin_cpu_init();
    return PyBool_FromLong(__builtin_cpu_supports("avx512f"));
}

/* multiplies_bytes(): whether it has those of matrices of 4 and 8 bits. */
static PyObject *multiplies_bytes(PyObject *self, PyObject *none) {
    __builtin_cpu_init();
    return PyBool_FromLong(
        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni"));
}

/* multiplies_pairs(): whether it has those of matrices of 16 bits. */
static PyObject *multiplies_pairs(PyObject *self, PyObject *none) {
    __builtin_cpu_init();
    return PyBool_FromLong(__builtin_cpu_supports("avx512bf16") &&
                           PyObject_IsTrue(multiplies_bytes(self, none)));
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {FAST(product), FAST(heads), FAST(rest), FAST(whole),
                                FAST(norm), FAST(likeliest),
                                {"attend", (PyCFunction)(void (*)(void))attend_texts,
                                 METH_FASTCALL, NULL},
                                {"runs_here", runs_here, METH_NOARGS, NULL},
                                {"multiplies_bytes", multiplies_bytes, METH_NOARGS, NULL},
                                {"multiplies_pairs", multiplies_pairs, METH_NOARGS, NULL}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "dmtd_vnni", NULL, -1, methods};
PyMODINIT_FUNC PyInit_dmtd_vnni(void) {
    PyObject *made = PyModule_Create(&module);
    /* by which the app knows whether this is the kernel that it was written for */
    if (made && PyModule_AddIntConstant(made, "VERSION", VERSION)) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
