// The likeliest token of each row of logits and the natural logarithm of its probability, in one
// launch. Of equal ones the first. Each row is PARTS blocks' work; the last of them to end, by a
// counter that it sets back, puts their results together, always in the same order.
//
// logits [rows, size], bfloat16 where WIDE is 0, float32 where it is 1; out [rows, 2]: token,
// logarithm, NaN or infinite where a logit is NaN or infinity, or all are minus infinity. Macros:
// WIDE, THREADS, PARTS.

#ifndef EMULATED
typedef unsigned int u32;
typedef unsigned short u16;
#define INFINITY __int_as_float(0x7f800000)  // NVRTC has no math.h
#define NAN __int_as_float(0x7fffffff)
#endif

struct Best {
  float most, sum;  // the largest logit, and the sum of e^(logit - most)
  int at;
};

__device__ __forceinline__ Best merged(Best a, Best b) {
  const bool second = b.most > a.most || (b.most == a.most && b.at < a.at);
  const float most = second ? b.most : a.most, less = second ? a.most : b.most;
  const float sum = second ? b.sum : a.sum, more = second ? a.sum : b.sum;
  // more is 0 where both are minus infinities
  return {most, more == 0 ? sum : sum + more * expf(less - most), second ? b.at : a.at};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    greedy(const void* __restrict__ logits, float* partial, int* done, float* out, int size) {
  const int row = blockIdx.x / PARTS, part = blockIdx.x % PARTS;
  const long long offset = (long long)row * size;
  Best mine = {-INFINITY, 0, 0x7fffffff};
  for (int i = part * THREADS + threadIdx.x; i < size; i += PARTS * THREADS) {
#if WIDE
    const float x = ((const float*)logits)[offset + i];
#else
    const float x = __uint_as_float((u32)((const u16*)logits)[offset + i] << 16);
#endif
    if (x == -INFINITY) continue;
    if (x > mine.most) mine = {x, mine.sum * expf(mine.most - x) + 1, i};
    else mine.sum += expf(x - mine.most);  // NaN stays NaN
  }
  __shared__ Best all[THREADS];
  __shared__ int last;
  all[threadIdx.x] = mine;
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) all[threadIdx.x] = merged(all[threadIdx.x], all[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) {
    float* to = partial + (size_t)blockIdx.x * 3;
    to[0] = all[0].most;
    to[1] = all[0].sum;
    to[2] = __uint_as_float((u32)all[0].at);
    __threadfence();
    last = atomicAdd(done + row, 1) == PARTS - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  all[threadIdx.x] = {-INFINITY, 0, 0x7fffffff};
  if (threadIdx.x < PARTS) {
    const volatile float* from = partial + ((size_t)row * PARTS + threadIdx.x) * 3;
    all[threadIdx.x] = {from[0], from[1], (int)__float_as_uint(from[2])};
  }
  for (int half = THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) all[threadIdx.x] = merged(all[threadIdx.x], all[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) {
    out[row * 2] = all[0].at;
    out[row * 2 + 1] = all[0].most == INFINITY ? NAN : -logf(all[0].sum);
    done[row] = 0;
  }
}
