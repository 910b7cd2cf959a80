"""The way back from token ids to what a caller reads: texts, parts of an answer, results."""

from tilewise.foreign.modules import finder_of

_TYPES = dict.fromkeys(("CompletionOutput", "RequestOutput"), "tilewise.types")
_BEAMS = dict.fromkeys(("BeamSearchOutput", "BeamSearchSequence"), "tilewise.entrypoints.beam_search")
__getattr__ = finder_of(__name__, _TYPES | _BEAMS)
