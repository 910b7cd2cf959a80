"""`tilewise plan`: the memory that a deployment takes and the speed it can have, from a model's small files alone."""
