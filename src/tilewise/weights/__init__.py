"""Checkpoints on disk: finding them, naming their tensors, reading them in pieces."""
