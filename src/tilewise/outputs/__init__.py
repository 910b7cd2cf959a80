"""Token ids back to what a caller reads."""
