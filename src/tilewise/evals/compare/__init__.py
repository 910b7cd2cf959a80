"""Compares two results on the same questions: which is right more often and how surely, how alike, how fast."""
