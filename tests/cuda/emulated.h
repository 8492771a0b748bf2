// What cuda_packed.cu needs of CUDA, by one thread of the host for each of a block's, so that the
// same source runs without a GPU. Included before it (g++ -include). mma as PTX describes m16n8k16.
#pragma once
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#define EMULATED 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(n)
#define __shared__ static
typedef unsigned int u32;
typedef unsigned short u16;
struct uint4 {
  u32 x, y, z, w;
};
struct Place {
  unsigned x, y, z;
};
inline thread_local Place threadIdx, blockIdx;
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float __uint_as_float(u32 u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline u32 __float_as_uint(float f) {
  u32 u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __expf(float x) { return std::exp(x); }
inline uint4 stream(const uint4* p) { return *p; }
inline u32 lop(u32 w, u32 mask, u32 bits) { return (w & mask) | bits; }
inline void __threadfence() {}
inline int atomicAdd(int* at, int more) { return __atomic_fetch_add(at, more, __ATOMIC_SEQ_CST); }
inline void let_next() {}
inline void await_last() {}

struct Warp {
  std::barrier<> all{32};
  u32 a[32][4], b[32][2];
};
inline std::unique_ptr<std::barrier<>> whole_block;
inline std::vector<std::unique_ptr<Warp>> warps;
inline void __syncthreads() { whole_block->arrive_and_wait(); }

inline void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  Warp& warp = *warps[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  const u32 a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  std::memcpy(warp.a[lane], a, sizeof a);
  std::memcpy(warp.b[lane], b, sizeof b);
  warp.all.arrive_and_wait();
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; k++) {  // lane and register that hold A[row][k] and B[k][column]
      const u32 of_a = warp.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2],
                of_b = warp.b[column * 4 + k % 8 / 2][k / 8];
      const int shift = k % 2 * 16;
      sum += (double)__uint_as_float(of_a >> shift << 16) *
             (double)__uint_as_float(of_b >> shift << 16);
    }
    c[i] = (float)sum;
  }
  warp.all.arrive_and_wait();
}

template <typename F>
void run_blocks(int blocks, int threads, F body) {
  for (int block = 0; block < blocks; block++) {
    whole_block = std::make_unique<std::barrier<>>(threads);
    warps.clear();
    for (int i = 0; i < threads / 32; i++) warps.push_back(std::make_unique<Warp>());
    std::vector<std::thread> running;
    for (int i = 0; i < threads; i++)
      running.emplace_back([=] {
        threadIdx = {(unsigned)i, 0, 0};
        blockIdx = {(unsigned)block, 0, 0};
        body();
      });
    for (auto& each : running) each.join();
  }
}
