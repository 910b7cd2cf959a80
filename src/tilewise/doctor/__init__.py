"""Doctors say whether a machine computes right, and whether another server makes the prompts of the training."""
