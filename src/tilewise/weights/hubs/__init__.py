"""Model hubs: what a repository holds, which of its files are needed, and how they come into the cache."""
