"""Triton kernels, and the functions that launch them. Nothing here needs a driver until a kernel is launched."""
