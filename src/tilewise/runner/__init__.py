"""The only place where device work starts: plans go in, sampled tokens come out."""
