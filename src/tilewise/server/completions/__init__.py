"""OpenAI's text completions: raw prompts are continued."""
