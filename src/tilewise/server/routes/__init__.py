"""Routes: one file for what belongs together. Each turns a body into a call, lets the service answer, and replies."""
