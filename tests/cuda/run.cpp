#include SOURCE
#ifdef GREEDY
extern "C" void run_greedy(int blocks, const void* logits, void* partial, void* done, void* out,
                           int size) {
  run_blocks(blocks, THREADS,
             [=] { greedy(logits, (float*)partial, (int*)done, (float*)out, size); });
}
#else
extern "C" void run_product(int blocks, const void* weight, const void* scale, const void* x,
                            const void* bias, const void* residual, void* y, int rows, int columns,
                            int positions, int tiles) {
  run_blocks(blocks, WARPS * 32, [=] {
    product((const uint4*)weight, scale, (const u16*)x, (const u16*)bias, (const u16*)residual,
            (u16*)y, rows, columns, positions, tiles);
  });
}
#endif
