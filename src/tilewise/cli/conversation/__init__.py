"""What `tilewise chat` is made of: a client of any OpenAI-compatible server, and a conversation at a terminal."""
