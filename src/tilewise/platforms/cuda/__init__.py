"""NVIDIA GPUs: torch's own ops, and Triton kernels of ours in their places."""
