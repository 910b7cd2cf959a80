"""NVIDIA GPUs: torch's own ops, and Triton kernels of ours in their places."""

from tilewise.platforms.cuda.platform import CudaPlatform, cuda_missing

__all__ = ["CudaPlatform", "cuda_missing"]
