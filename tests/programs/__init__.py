"""Programs as they are written for vLLM, in which only the package's name and the model are ours; a test runs each."""
