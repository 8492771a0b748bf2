// y = x W^T (+ bias) (+ residual) for a few positions, W in 4 or 8 bits, x and y in bfloat16, sums
// in float32 by the tensor cores' m16n8k16.
//
// A row tile is 16 rows of W. Of it a warp reads 16 bytes per lane at once (a "step"): 64 columns
// in 4 bits, 32 in 8. Lane 4g + t holds rows g and g + 8, columns 8t to 8t + 7 of each 32, so that
// its columns of x are 16 bytes too, and the registers of a step are the tensor core's operands in
// the order in which they lie. A 4-bit level q becomes the bfloat16 128 + q by two bit operations,
// which is exact; 128 + 8 times the sum of x is taken off by the same instruction beforehand. A
// byte b becomes 2048 + 16 (b >> 4) and 128 + (b & 15).
//
// No position's result depends on how many others there are: columns of the product are
// independent, and the order of every sum is fixed by W's shape.
//
// Macros: BITS 4 or 8; TILES row tiles of a block; WARPS of a block, which divide the columns among
// them; AHEAD steps read before they are used; GATED: rows g and g + 8 of a tile are a gate and its
// up, and y is silu(gate) up, of half as many rows; PDL: what does not depend on the kernel before
// is read before it has ended.

#ifndef EMULATED
typedef unsigned int u32;
typedef unsigned short u16;
__device__ __forceinline__ void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 stream(const uint4* p) {  // read once, by nobody else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// (w & mask) | bits in one instruction
__device__ __forceinline__ u32 lop(u32 w, u32 mask, u32 bits) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(v) : "r"(w), "r"(mask), "r"(bits));
  return v;
}
#if PDL
__device__ __forceinline__ void let_next() { asm volatile("griddepcontrol.launch_dependents;"); }
__device__ __forceinline__ void await_last() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#else
__device__ __forceinline__ void let_next() {}
__device__ __forceinline__ void await_last() {}
#endif
#endif

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ u16 rounded(float x) {
  u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
__device__ __forceinline__ float wide(u16 x) { return __uint_as_float((u32)x << 16); }

#if BITS == 4
#define COLUMNS 64
#define OFF 0xC308C308u  // -136, twice
#else
#define COLUMNS 32
#define OFF 0xC510C510u  // -2304, twice
#endif
#define CHUNKS (COLUMNS / 32)
#define BLOCKS ((POSITIONS + 7) / 8)  // of 8 positions

// weight [tiles, steps, 32 lanes] of 16 bytes. scale, 4 bits: [tiles, steps, 8] of 16 bytes: step
// and middle of row g in either 32 columns, then of row g + 8; 8 bits: [rows], one each.
// x [positions, columns]; columns a multiple of COLUMNS; rows: that y has. Grid: y's tiles / TILES.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    product(const uint4* __restrict__ weight, const void* __restrict__ scale, const u16* x,
            const u16* __restrict__ bias, const u16* residual, u16* y, int rows, int columns,
            int positions, int tiles) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int steps = columns / COLUMNS, first = blockIdx.x * TILES;
  // position g; of each step the same place
  const uint4* mine = (const uint4*)(x + (size_t)g * columns + t * 8);
  float sum[TILES][BLOCKS][4];
  uint4 w[AHEAD][TILES] = {};  // what is read ahead, round after round
#if BITS == 4
  uint4 s[AHEAD][TILES] = {};
  const uint4* scales = (const uint4*)scale;
#endif
  let_next();
#pragma unroll
  for (int r = 0; r < TILES; r++)
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[r][b][i] = 0;

#if BITS == 4
#define READ_SCALE(a, r, step) \
  s[a][r] = stream(scales + ((size_t)(first + r) * steps + (step)) * 8 + g);
#else
#define READ_SCALE(a, r, step)
#endif
#define READ(a, step)                                                                          \
  _Pragma("unroll") for (int r = 0; r < TILES; r++) if ((step) < steps && first + r < tiles) { \
    w[a][r] = stream(weight + ((size_t)(first + r) * steps + (step)) * 32 + lane);             \
    READ_SCALE(a, r, step)                                                                     \
  }
#pragma unroll
  for (int a = 0; a < AHEAD; a++) { READ(a, warp + a * WARPS) }
  await_last();
  for (int at = warp; at < steps; at += AHEAD * WARPS) {
#pragma unroll
    for (int a = 0; a < AHEAD; a++) {
      const int step = at + a * WARPS;
      if (step >= steps) break;
      uint4 xs[BLOCKS][CHUNKS];
#pragma unroll
      for (int b = 0; b < BLOCKS; b++)
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
          xs[b][c] = make_uint4(0, 0, 0, 0);
          if (b * 8 + g < positions) xs[b][c] = mine[b * columns + step * (COLUMNS / 8) + c * 4];
        }
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
          const uint4 v = xs[b][c];
          float off[4] = {0, 0, 0, 0};
          mma(off, OFF, OFF, OFF, OFF, v.x, v.y);
          mma(off, OFF, OFF, OFF, OFF, v.z, v.w);
#if BITS == 4
          const float total0 = off[0] * (-1.0f / 136), total1 = off[1] * (-1.0f / 136);  // of x
#endif
#pragma unroll
          for (int r = 0; r < TILES; r++) {
#if BITS == 4
            // rows g and g + 8
            const u32 p = c ? w[a][r].z : w[a][r].x, q = c ? w[a][r].w : w[a][r].y;
            const u32 m = 0x000F000Fu, o = 0x43004300u;
            float d[4] = {off[0], off[1], off[2], off[3]};
            mma(d, lop(p, m, o), lop(q, m, o), lop(p >> 4, m, o), lop(q >> 4, m, o), v.x, v.y);
            mma(d, lop(p >> 8, m, o), lop(q >> 8, m, o), lop(p >> 12, m, o), lop(q >> 12, m, o),
                v.z, v.w);
            const u32 above = c ? s[a][r].y : s[a][r].x, below = c ? s[a][r].w : s[a][r].z;
            sum[r][b][0] = fmaf(high(above), total0, fmaf(low(above), d[0], sum[r][b][0]));
            sum[r][b][1] = fmaf(high(above), total1, fmaf(low(above), d[1], sum[r][b][1]));
            sum[r][b][2] = fmaf(high(below), total0, fmaf(low(below), d[2], sum[r][b][2]));
            sum[r][b][3] = fmaf(high(below), total1, fmaf(low(below), d[3], sum[r][b][3]));
#else
            const u32 m = 0x000F000Fu, l = 0x43004300u, h = 0x45004500u;
            const uint4 e = w[a][r];  // row g in x, y; row g + 8 in z, w
            float (&d)[4] = sum[r][b];
#pragma unroll
            for (int i = 0; i < 4; i++) d[i] += off[i];
            mma(d, lop(e.x, m, l), lop(e.z, m, l), lop(e.x >> 8, m, l), lop(e.z >> 8, m, l), v.x,
                v.y);
            mma(d, lop(e.x >> 4, m, h), lop(e.z >> 4, m, h), lop(e.x >> 12, m, h),
                lop(e.z >> 12, m, h), v.x, v.y);
            mma(d, lop(e.y, m, l), lop(e.w, m, l), lop(e.y >> 8, m, l), lop(e.w >> 8, m, l), v.z,
                v.w);
            mma(d, lop(e.y >> 4, m, h), lop(e.w >> 4, m, h), lop(e.y >> 12, m, h),
                lop(e.w >> 12, m, h), v.z, v.w);
#endif
          }
        }
      }
      READ(a, step + AHEAD * WARPS)
    }
  }

  __shared__ float shared[WARPS][TILES][BLOCKS][32][4];
#pragma unroll
  for (int r = 0; r < TILES; r++)
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) shared[warp][r][b][lane][i] = sum[r][b][i];
  __syncthreads();

#if GATED
#define HEIGHT 8
#else
#define HEIGHT 16
#endif
  for (int i = threadIdx.x; i < TILES * BLOCKS * 8 * HEIGHT; i += WARPS * 32) {
    const int inside = i % HEIGHT, column = i / HEIGHT % 8, b = i / HEIGHT / 8 % BLOCKS,
              r = i / HEIGHT / 8 / BLOCKS;
    const int position = b * 8 + column, row = (first + r) * HEIGHT + inside,
              from = inside % 8 * 4 + column / 2;
    if (position >= positions || row >= rows || first + r >= tiles) continue;
    float value = 0;
    for (int k = 0; k < WARPS; k++) value += shared[k][r][b][from][inside / 8 * 2 + column % 2];
#if BITS == 8
    value *= wide(((const u16*)scale)[(first + r) * 16 + inside]);
#endif
#if GATED
    float up = 0;
    for (int k = 0; k < WARPS; k++) up += shared[k][r][b][from][2 + column % 2];
#if BITS == 8
    up *= wide(((const u16*)scale)[(first + r) * 16 + 8 + inside]);
#endif
    value = wide(rounded(value));  // as if each had been a tensor of its own
    value = wide(rounded(value / (1 + __expf(-value)))) * wide(rounded(up));
#else
    if (bias) value += wide(bias[row]);
    if (residual) value = value + wide(residual[(size_t)position * rows + row]);
#endif
    y[(size_t)position * rows + row] = rounded(value);
  }
}

// The same weights as bfloat16: y [rows, columns], a step of a tile by each warp. GATED: the gates'
// rows, then the ups'.
extern "C" __global__ void __launch_bounds__(256)
    dense(const uint4* __restrict__ weight, const void* __restrict__ scale, u16* y, int rows,
          int columns, int tiles) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, steps = columns / COLUMNS;
  const long long at = (long long)blockIdx.x * 8 + threadIdx.x / 32;
  if (at >= (long long)tiles * steps) return;
  const int tile = (int)(at / steps), step = (int)(at % steps);
  const uint4 w = weight[at * 32 + lane];
  const u32 words[4] = {w.x, w.y, w.z, w.w};
#if BITS == 4
  const uint4 s = ((const uint4*)scale)[at * 8 + g];
  const u32 scales[4] = {s.x, s.z, s.y, s.w};  // in the order of the words
#endif
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
#if GATED
      const int row = half * (rows / 2) + tile * 8 + g;
#else
      const int row = tile * 16 + half * 8 + g;
#endif
      if (row >= rows) continue;
      u32 out[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
#if BITS == 4
        const u32 word = words[c * 2 + half] >> (4 * i), by = scales[c * 2 + half];
        out[i] = rounded(((float)(word & 15) - 8) * low(by) + high(by)) |
                 (u32)rounded(((float)(word >> 16 & 15) - 8) * low(by) + high(by)) << 16;
#else
        const u32 word = words[half * 2 + i / 2] >> (8 * (i % 2));
        const float by = wide(((const u16*)scale)[tile * 16 + half * 8 + g]);
        out[i] = rounded(((float)(word & 255) - 128) * by) |
                 (u32)rounded(((float)(word >> 16 & 255) - 128) * by) << 16;
#endif
      }
      *(uint4*)(y + (size_t)row * columns + step * COLUMNS + c * 32 + t * 8) =
          make_uint4(out[0], out[1], out[2], out[3]);
    }
}
