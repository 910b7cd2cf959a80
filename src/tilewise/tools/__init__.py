"""What people who test with Tilewise need, and the engine does not."""
