"""The web chat (extra `tilewise[ui]`): a page over any OpenAI-compatible server, for people who want to look."""
