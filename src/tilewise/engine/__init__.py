"""The engine's core: it decides which sequence computes which tokens in the next step. No torch, no tensors."""
