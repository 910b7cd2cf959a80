"""Python's ways in, under vLLM's names: LLM, AsyncLLM and LLMEngine, beam search, and helpers about media."""

from tilewise.foreign.modules import finder_of

__getattr__ = finder_of(__name__, {"LLM": "tilewise.entrypoints.llm"})
