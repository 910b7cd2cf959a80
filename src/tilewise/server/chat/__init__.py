"""OpenAI's chat API: a conversation is read into a `ChatCall`, and its answers written whole or as chunks."""
