"""CUDA kernels of our own, compiled as they are first needed."""
