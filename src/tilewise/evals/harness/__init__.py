"""Everything around lm_eval: the models that it calls, and the code that finds its tasks and runs it."""
