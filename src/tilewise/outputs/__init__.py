"""Token ids back to what a caller reads."""

from tilewise.vllm_modules import finder_of

__getattr__ = finder_of(__name__, dict.fromkeys(("CompletionOutput", "RequestOutput"), "tilewise.types"))
