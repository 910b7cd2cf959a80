"""Text and pixels on their way to the engine: templates, tokenizer, tiles, requests. No torch here."""

from tilewise.foreign.modules import finder_of

_PROMPTS = ("PromptType", "TextPrompt", "TokensPrompt")
__getattr__ = finder_of(__name__, dict.fromkeys(_PROMPTS, "tilewise.inputs.prompts"))
