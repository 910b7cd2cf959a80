"""OpenAI's Responses API: a body is read as a chat, and its answer told as items and events; responses may be kept."""
