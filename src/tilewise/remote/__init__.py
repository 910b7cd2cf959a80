"""An engine in a process of its own: the messages to and from it, what runs there, and its supervisor."""
