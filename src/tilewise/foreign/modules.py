"""vLLM's modules that have no counterpart here, for programs in which only the package's name was changed.

`from tilewise.v1.engine.async_llm import AsyncLLM` finds AsyncLLM where it is, `python -m
tilewise.entrypoints.openai.api_server` serves. A name that cannot be had raises an ImportError that says what to do
instead; asked for as an attribute (`hasattr`), it is an AttributeError with the same sentence.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from tilewise.errors import nearest

_HERE = "tilewise.foreign.modules"
_TOOLS = "tilewise.entrypoints.media_tools"
_MEDIA_TOOLS = (
    *("fetch_image", "fetch_video", "encode_image_base64", "encode_image_url"),
    *("encode_video_base64", "encode_video_url"),
)
_PROMPTS = dict.fromkeys(("PromptType", "TextPrompt", "TokensPrompt"), "tilewise.inputs.prompts")
_PARSER = {"FlexibleArgumentParser": "tilewise.engine.arg_utils"}
_BEAMS = dict.fromkeys(("BeamSearchOutput", "BeamSearchSequence"), "tilewise.entrypoints.beam_search")
_CLEANUP = dict.fromkeys(
    ("cleanup_dist_env_and_memory", "destroy_model_parallel", "destroy_distributed_environment"), _HERE
)
MODULES: dict[str, dict[str, str]] = {
    "beam_search": _BEAMS,
    "distributed": _CLEANUP,
    "distributed.parallel_state": _CLEANUP,
    "engine.async_llm_engine": {"AsyncLLMEngine": "tilewise.entrypoints.async_llm"},
    "engine.llm_engine": {"LLMEngine": "tilewise.entrypoints.llm_engine"},
    "entrypoints.cli": {},
    "entrypoints.launchers": {},
    "entrypoints.openai": {},
    "inputs.data": _PROMPTS,
    "logger": {"init_logger": _HERE},
    "logprobs": {"Logprob": "tilewise.types"},
    "lora": {},
    "lora.request": {"LoRARequest": "tilewise.inputs.request_builder"},
    "multimodal": {},
    "multimodal.image": dict.fromkeys(("convert_image_mode", "rescale_image_size"), _TOOLS),
    "multimodal.utils": dict.fromkeys(_MEDIA_TOOLS, _TOOLS),
    "utils": {**_PARSER, "random_uuid": _HERE},
    "utils.argparse_utils": _PARSER,
    "v1": {},
    "v1.engine": {},
    "v1.engine.async_llm": {"AsyncLLM": "tilewise.entrypoints.async_llm"},
    "v1.engine.llm_engine": {"LLMEngine": "tilewise.entrypoints.llm_engine"},
    "version": {"__version__": "tilewise"},
}
"""Names in each module of vLLM's, and the modules here in which they are."""
PROGRAMS = {
    "entrypoints.cli.main": "",
    "entrypoints.launchers.run_batch": "run-batch",
    "entrypoints.openai.api_server": "serve",
    "entrypoints.openai.run_batch": "run-batch",
}
"""Modules that are run with `python -m`, and the command of `tilewise` that each stands for."""
_NO_POOLING = "models here answer, they are not for embeddings, scores and classes"
ABSENT = {
    **dict.fromkeys(
        (
            *("PoolingParams", "PoolingOutput", "PoolingRequestOutput", "EmbeddingOutput", "EmbeddingRequestOutput"),
            *("ClassificationOutput", "ClassificationRequestOutput", "ScoringOutput", "ScoringRequestOutput"),
        ),
        _NO_POOLING,
    ),
    "ModelRegistry": "models of other families cannot be added",
    "initialize_ray_cluster": "one machine computes",
    "EmbedsPrompt": "embeddings are not taken in place of prompts; send text or ids",
    "fetch_audio": "InternVL models do not hear",
    "AudioAsset": "InternVL models do not hear",
    "MediaConnector": "fetch_image and fetch_video of tilewise.multimodal.utils read media",
    "ModelConfig": "options are keywords of LLM and EngineArgs, and LLM.model_config says what they came to",
}
"""Names that cannot be had, and why."""
_LIST = "docs/python.md lists what can be imported"
_INSIDE = f"it is about the inside of vLLM; {_LIST}"
REASONS = {
    **dict.fromkeys(("adapter_commons", "lora"), "an adapter is merged: LLM(model, adapter=FOLDER)"),
    **dict.fromkeys(("compilation", "forward_context", "attention"), f"steps are captured without it; {_LIST}"),
    **dict.fromkeys(("model_executor", "models"), "models are in tilewise.models, and others cannot be added"),
    **dict.fromkeys(("tokenizers", "transformers_utils"), "LLM.get_tokenizer() has the tokenizer"),
    **dict.fromkeys(("tool_parsers", "reasoning"), "the model brings its own; leave the import out"),
    **dict.fromkeys(("pooling_params", "tasks"), _NO_POOLING),
    **dict.fromkeys(("executor", "ray", "worker", "v1.executor", "v1.worker"), "one machine computes; leave it out"),
    "benchmarks": "run `tilewise bench`",
    "collect_env": "run `tilewise doctor`",
    "config": "options are keywords of LLM and fields of EngineArgs; give them there, objects as dicts",
    "distributed": "nothing has to be set up or torn down; leave it out",
    "entrypoints.chat_utils": "LLM.chat reads conversations, and the tokenizer's apply_chat_template renders them",
    "entrypoints.openai": "run `tilewise serve`, whose API clients use; its classes are not for programs",
    "envs": "set variables of the environment; docs/compatibility.md says which have an effect",
    "exceptions": "errors are in tilewise.errors",
    "multimodal": "give pictures and videos to LLM as docs/python.md says",
    "plugins": "no plugins are loaded",
    "profiler": "`timing` of each result says where its time went",
    "sequence": "results are in tilewise.outputs",
    "tracing": "a server traces with --otlp-traces-endpoint",
    "usage": "nothing is reported to anyone; leave it out",
    "v1.metrics": "LLM.counters has the figures, and a server has /metrics",
    **dict.fromkeys(
        (
            *("_custom_ops", "beam_search", "connections", "core", "device_allocator", "engine", "entrypoints"),
            *("env_override", "inputs", "jsontree", "kernels", "logger", "logging_utils", "logits_process"),
            *("logprobs", "outputs", "parser", "renderers", "sampling_params", "scalar_type", "scripts"),
            *("test_utils", "third_party", "triton_utils", "utils", "v1", "version", "vllm_flash_attn"),
        ),
        _INSIDE,
    ),
}
"""Modules of vLLM, and why a name of theirs, or of a module below, cannot be had."""


def _explain(module: str, name: str) -> str | None:
    """Return a sentence about a name that a module lacks; None for one that vLLM does not have either."""
    if name in ABSENT:
        return f"{module} has no {name}: {ABSENT[name]}."
    classes = [known for known in vars(sys.modules.get(module, object)) if known[:1].isupper()]
    if near := nearest(name, [*_HOMES.get(module, ()), *classes], cutoff=0.75):
        return f"{module} has no {name}. Did you mean {near}?"
    steps = f"{module}.{name}".split(".")[1:]
    places = (".".join(steps[:count]) for count in range(len(steps), 0, -1))
    why = next((REASONS[place] for place in places if place in REASONS), None)
    return why and f"{module} has no {name}: {why}."


def finder_of(module: str, homes: Mapping[str, str], error: type[Exception] = AttributeError) -> Callable[[str], Any]:
    """Return a module's `__getattr__` that loads each name's home on first use, so that importing stays quick.

    `error` is ImportError for a module that is no package, since `from module import name` asks the finder below about
    missing names of packages alone.
    """
    _HOMES[module] = homes

    def find(name: str) -> Any:
        if name in homes:
            return getattr(import_module(homes[name]), name)
        if not name.startswith("_") and (why := _explain(module, name)):
            raise error(why)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


_HOMES: dict[str, Mapping[str, str]] = {}
"""Names of each module that has a `__getattr__` of `finder_of`."""


class _Finder:
    """The import hook that Python asks for modules that have no file, and for names that a package does not have.

    It has the methods of importlib.abc's MetaPathFinder and InspectLoader, and is neither: loading that module takes a
    third of the time in which `tilewise --help` is there.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        place = fullname.removeprefix("tilewise.")
        if not fullname.startswith("tilewise."):
            return None
        if place in MODULES or place in PROGRAMS:
            return ModuleSpec(fullname, self, is_package=self.is_package(fullname))  # type: ignore[arg-type]
        if not name.startswith("_") and (why := _explain(parent, name)):
            raise ModuleNotFoundError(why)
        return None

    def is_package(self, fullname: str) -> bool:
        return fullname.removeprefix("tilewise.") not in PROGRAMS

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        place = module.__name__.removeprefix("tilewise.")
        error = AttributeError if place in MODULES else ImportError
        module.__getattr__ = finder_of(module.__name__, MODULES.get(place, {}), error=error)  # type: ignore[method-assign]

    def get_source(self, fullname: str) -> str:
        verb = PROGRAMS.get(fullname.removeprefix("tilewise."))
        words = [verb] if verb else []
        # A process that this one starts may load it again, under another name.
        lines = ("import sys", "from tilewise.cli import main", f"sys.exit(main([*{words!r}, *sys.argv[1:]]))")
        return "if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in lines)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.get_source(fullname), f"<{fullname}>", "exec", dont_inherit=True)


def install() -> None:
    """Let imports find the modules above, behind all that have files."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def random_uuid() -> str:
    import uuid

    return uuid.uuid4().hex


def init_logger(name: str) -> logging.Logger:
    """Return a logger with vLLM's `debug_once`, `info_once` and `warning_once`, which say each message once."""
    logger, said = logging.getLogger(name), set[tuple[Any, ...]]()

    def once(level: int, message: str, *values: Any, **_scope: Any) -> None:
        if (level, message, values) not in said:
            said.add((level, message, values))
            logger.log(level, message, *values, stacklevel=2)

    for level in ("debug", "info", "warning"):
        setattr(logger, f"{level}_once", partial(once, getattr(logging, level.upper())))
    return logger


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Collect what Python no longer holds; there is no distributed environment to be torn down."""
    gc.collect()


def destroy_model_parallel() -> None:
    """Do nothing: ranks are processes of an engine, and end with it."""


def destroy_distributed_environment() -> None:
    """Do nothing, as `destroy_model_parallel`."""
