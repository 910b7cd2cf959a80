"""The stateless part of OpenAI's Responses API: a body is read as a chat, its answer told as items and events."""
