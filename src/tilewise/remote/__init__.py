"""An engine in a process of its own: what is said to it, what runs there, and who looks after it."""
