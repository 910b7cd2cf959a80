"""Quantising checkpoints: a float checkpoint in, one of int8, 4 bits or FP8 out, tensor by tensor."""
