"""Building blocks. Each pulls its weights from a view, knows its own sharding, and calls the platform's ops."""
