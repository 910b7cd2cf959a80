"""What lm_eval calls, and how it is called: the only part that imports it."""
