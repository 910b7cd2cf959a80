"""Model hubs: they list what a repository holds, and the files of it that are needed are fetched into the cache."""
