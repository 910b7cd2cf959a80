"""Services: servers in the background, by name."""
