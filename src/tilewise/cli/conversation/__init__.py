"""The parts of `tilewise chat`: a client of any OpenAI-compatible server, and a conversation at a terminal."""

DEFAULT_URL = "http://localhost:8000/v1"
