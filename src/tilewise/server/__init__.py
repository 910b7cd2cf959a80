"""The OpenAI API: bodies in, calls out, and back again."""
