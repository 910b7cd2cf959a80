"""Two results on the same questions: which is right more often, how sure that is, how alike they speak, how fast."""
