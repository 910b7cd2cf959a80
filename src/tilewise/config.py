"""EngineConfig: what the user wishes. `None` = choose for me; `plan.resolve` does, and says why.

Names, meanings and defaults are vLLM's where vLLM has the option; every field carries the line that `--help` prints.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewise.errors import InvalidConfig, UnknownOption, did_you_mean
from tilewise.foreign.modules import finder_of
from tilewise.foreign.table import ENGINE, PROGRAM
from tilewise.foreign.translate import translate
from tilewise.host import require_extra
from tilewise.ignored import LOG
from tilewise.layout import ExpertPlacement, Layout, TowerMode
from tilewise.option import check_range, check_types, option, whole
from tilewise.speculation import SpeculativeConfig
from tilewise.units import read_amount, read_length

if not TYPE_CHECKING:
    __getattr__ = finder_of(__name__, {}, ImportError)
Dtype = Literal["auto", "bfloat16", "float16", "half", "float32", "float"]
Quantization = Literal[
    "int8",
    "ascend",
    "auto-round",
    "awq",
    "awq_marlin",
    "compressed-tensors",
    "fp8",
    "gguf",
    "gptq",
    "gptq_marlin",
    "mxfp4",
    "smooth_quant",
]
KVCacheDtype = Literal[
    "auto",
    "bfloat16",
    "float16",
    "float32",
    "int8",
    "int8_per_token_head",
    "fp8",
    "fp8_e4m3",
    "fp8_per_token_head",
]
DeviceKind = Literal["auto", "cpu", "cuda"]
LoadFormat = Literal["auto", "safetensors", "dummy"]
LoadStrategy = Literal["lazy", "eager", "prefetch"]
TileBudget = Literal["each", "share"]
Hub = Literal["huggingface", "modelscope"]
Policy = Literal["fcfs", "priority"]
Backend = Literal["mp", "ray", "uni"]

logger = logging.getLogger("tilewise")

STREAMING_ENCODE_BUDGET, _BATCH_ENCODE_BUDGET = 0.25, 16.0
"""Default `encode_budget` where tokens are read as they come, and where answers are read whole."""
FLASHCOMM_TOKENS = 1000
"""Tokens of a step from which on FlashComm shares them out (vllm-ascend)."""
AUTO_LENGTH = -1
"""Value of `max_model_len` for the longest that fits."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Every option of the engine. Each works, or is refused with the reason."""

    model: str = option(
        "demo",
        "'demo', a folder, a .gguf file, or a hub id such as OpenGVLab/InternVL3-8B; a folder of that name wins "
        "(one called demo is ./demo)",
        "model",
    )
    revision: str | None = option(
        None,
        "branch, tag or commit on the hub (default: main; master on ModelScope); a commit needs no network",
        "model",
    )
    hub: Hub | None = option(
        None,
        "where ids live (default: huggingface, or modelscope if VLLM_USE_MODELSCOPE=True); see docs/models.md",
        "model",
    )
    download_dir: str | None = option(
        None, "cache folder for downloads (default: the hub's own, as HF_HOME or MODELSCOPE_CACHE say)", "model"
    )
    trust_remote_code: bool = option(
        False, "accepted for compatibility; code of a checkpoint is never run, nor is it needed", "model"
    )
    safetensors_load_strategy: LoadStrategy | None = option(
        None,
        "lazy = weights are read as they are needed; prefetch = a thread reads ahead, for slow and network disks; "
        "eager = all is read first (default: lazy)",
        "model",
    )
    device: DeviceKind = option("auto", "what computes: cuda, cpu, or auto = a GPU where there is one", "model")
    dtype: Dtype = option("auto", "type of weights and activations", "model")
    quantization: Quantization | None = option(
        None,
        "int8 = matrices in floats are rounded to int8 as they are loaded, a scale for each output, and multiplied "
        "with rows rounded as they come: half the memory of bfloat16 and more speed, at some accuracy; fp8 = to E4M3 "
        "instead, but for the head, and multiplied with rows of floats (docs/cpu.md). "
        "How a quantised checkpoint is kept is found from its files; any other name is only compared with it",
        "model",
    )
    max_model_len: int | None = option(
        None, "longest prompt and answer together, in tokens: 8192, 40K, or auto = what fits", "model", read_length
    )
    load_format: LoadFormat = option("auto", "dummy = random weights, to try sizes and speed", "model")
    enforce_eager: bool = option(False, "launch every step op by op, capture no graphs", "model")
    max_graph_size: int = option(
        512,
        "on a GPU, the most sequences of a captured step; sizes are 1, 2, 4, 8, 16 and so on, and a step is filled up "
        "to the next one",
        "model",
    )
    lazy_graphs: bool = option(
        False, "on a GPU, capture a step when one of its size comes first, and not at the start", "model"
    )
    seed: int | None = option(
        0,
        "requests without a seed draw from this one, in the order in which they come: the same again in each run; "
        "None = another draw in every run",
        "model",
    )
    tokenizer: str | None = option(None, "folder or hub id of another tokenizer (default: the model's own)", "model")
    tokenizer_revision: str | None = option(None, "branch, tag or commit of the tokenizer on the hub", "model")
    hf_token: str | None = option(
        None, "token for private and gated models (default: HF_TOKEN, or that of a login)", "model", shown=False
    )
    mmproj: str | None = option(
        None, "vision tower and projector of a model in GGUF files (default: the mmproj*.gguf beside it)", "model"
    )
    use_tqdm_on_load: bool = option(True, "show a progress bar while the weights of a large model are read", "model")

    block_size: int = option(16, "tokens a KV block", "memory")
    gpu_memory_utilization: float | None = option(
        None,
        "share of the device's memory that this engine takes for everything, the KV cache getting what is left",
        "memory",
        alias="device_memory_utilization",
    )
    kv_cache_memory_bytes: int | None = option(
        None, "memory for the KV cache (4G); wins over gpu_memory_utilization", "memory", read_amount
    )
    kv_cache_dtype: KVCacheDtype = option(
        "auto",
        "what the KV cache keeps: auto = the dtype of activations; int8, fp8 (E4M3) = 8 bits with a scale for each "
        "token and head, about half the memory of bfloat16 (docs/serving.md)",
        "memory",
    )
    num_gpu_blocks_override: int | None = option(
        None, "KV blocks, whatever memory there is; wins over all sizes", "memory"
    )
    enable_prefix_caching: bool = option(True, "compute a beginning that prompts share once", "memory")
    encoder_cache_gb: float | None = option(None, "memory for encoded tiles, in GiB", "memory")
    encoder_cache_dir: str | None = option(
        None, "folder that keeps encoded tiles across restarts; processes may share it (default: none)", "memory"
    )
    encoder_cache_dir_gb: float = option(
        10.0, "most that encoder_cache_dir may hold, in GiB; the longest unused tiles are removed", "memory"
    )

    max_num_seqs: int = option(64, "sequences that run at once", "scheduling")
    max_num_batched_tokens: int = option(4096, "tokens computed in one step", "scheduling", read_amount)
    encode_budget: float | None = option(
        None,
        "tiles encoded behind a step while something decodes (default: 0.25, a quarter of a tile's layers, so that "
        "streams hardly wait; 16 in LLM and run-batch, where only the whole counts)",
        "scheduling",
    )
    scheduling_policy: Policy = option(
        "fcfs", "fcfs = first come, first served; priority = requests of lower priority number first", "scheduling"
    )
    async_scheduling: bool | None = option(
        None, "plan the next step while one runs; default: where another device computes", "scheduling"
    )
    speculative_config: dict[str, Any] | None = option(
        None,
        'guess tokens ahead and verify them together, as {"method": "ngram", "num_speculative_tokens": 4} or '
        '{"model": "OpenGVLab/InternVL3-1B", "num_speculative_tokens": 3}; answers stay the same',
        "scheduling",
    )
    batch_invariant: bool | None = option(
        None,
        "logits are bit by bit the same in any batch, at some speed (default: on if VLLM_BATCH_INVARIANT=1)",
        "scheduling",
    )
    disable_log_stats: bool = option(True, "no line about throughput, load and caches every ten seconds", "scheduling")
    tensor_parallel_size: int = option(
        1,
        "ranks that share one model, each with some heads of every layer and its part of all other matrices; on a CPU "
        "they are processes that share its cores",
        "scheduling",
    )
    data_parallel_size: int = option(
        1,
        "replicas of the model, each an engine of its own; a request goes to the one that has the least work for it; "
        "on a CPU they share its cores and memory (docs/parallel.md)",
        "scheduling",
    )
    pipeline_parallel_size: int = option(
        1,
        "stages of a pipeline, each with its part of the layers; with tensor_parallel_size, so many ranks a stage",
        "scheduling",
    )
    mm_encoder_tp_mode: TowerMode = option(
        "data",
        "how tensor_parallel_size ranks encode tiles: data = each has the whole tower and takes some of the tiles, "
        "weights = each has some heads of the tower, and all take every tile",
        "scheduling",
    )
    vision_workers: int = option(
        0,
        "processes that encode tiles beside the engine's, which then only decodes; each has a tower of its own and a "
        "part of the cores",
        "scheduling",
    )
    cpu_binding: bool = option(
        False, "each rank of this machine keeps to processor cores of its own, where there are as many", "scheduling"
    )
    sequence_parallel_tokens: int | None = option(
        None,
        "in steps of so many tokens or more, each of tensor_parallel_size ranks norms a share of them, not all; 0 = "
        f"never (default: never, or {FLASHCOMM_TOKENS} if VLLM_ASCEND_ENABLE_FLASHCOMM1=1)",
        "scheduling",
    )
    enable_expert_parallel: bool = option(
        False, "each rank of a stage has some experts whole, not a part of every expert", "scheduling"
    )
    expert_placement_strategy: ExpertPlacement = option(
        "linear",
        "with enable_expert_parallel, which experts a rank has: linear = neighbouring ones, round_robin = in turn",
        "scheduling",
    )
    distributed_executor_backend: Backend | None = option(
        None,
        "where ranks are: mp = processes of this machine, ray = actors on the nodes of a Ray cluster (docs/ray.md), "
        "uni = one rank in the engine's process (default: mp where there are several)",
        "scheduling",
    )
    nnodes: int = option(
        1,
        "with distributed_executor_backend=ray, nodes that the cluster must have before ranks are placed",
        "scheduling",
    )
    disable_additional_properties: bool = option(
        True, "objects of schemas that list their properties have no others, unless a schema or a request says so",
        "scheduling",
    )  # fmt: skip
    disable_any_whitespace: bool = option(False, "structured answers in JSON have no white space", "scheduling")
    max_logprobs: int = option(20, "most log-probabilities a token that a request may ask for; -1 = all", "scheduling")

    limit_mm_per_prompt: dict[str, int] | None = option(None, 'most media a prompt, as {"image": 4}', "media")
    mm_processor_kwargs: dict[str, Any] | None = option(
        None,
        "min_dynamic_patch, max_dynamic_patch, dynamic_image_size, use_thumbnail for all requests",
        "media",
    )
    mm_processor_cache_gb: float | None = option(
        None,
        "host memory for pictures already cut, in GiB, so that one sent again is not cut again; 0 = none (default: 4, "
        "or a quarter of what is free once the model is loaded, if that is less)",
        "media",
    )
    enable_mm_embeds: bool = option(
        False,
        "take embeddings in place of pictures (image_embeds), as `tilewise encode-server` makes them (default: off; "
        "docs/encode-server.md)",
        "media",
    )
    tile_budget: TileBudget = option(
        "each",
        "max_dynamic_patch for each picture (as the reference infers) or shared (as it trained)",
        "media",
    )
    flash_router: bool = option(
        True, "Flash checkpoints: let their router give easy tiles a quarter of the tokens", "media"
    )
    interleave_mm_strings: bool = option(
        False, "keep pictures and texts in the order of a message; -hf checkpoints always do, as trained", "media"
    )
    exif_orientation: bool = option(
        True, "turn pictures as their camera says and videos as their file says (the reference does not)", "media"
    )
    max_image_pixels: int = option(89_478_485, "largest picture accepted, in pixels", "media")
    num_frames: int = option(32, "frames taken of a video; -1 = all, up to TILEWISE_MAX_CHOSEN_FRAMES", "media")
    fps: float | None = option(None, "frames a second of video, num_frames at most", "media")
    allowed_local_media_path: str | None = option(None, "folder below which file:// URLs may be read", "media")
    allowed_media_domains: tuple[str, ...] | None = option(
        None,
        "hosts that media may come from, private ones and networks too: minio.local, 10.0.0.0/8, and * for any public "
        "one (default: any public host; docs/serving.md)",
        "media",
    )
    max_image_aspect_ratio: float | None = option(
        None, "most that the longer side of a picture may be of the shorter one (default: no limit)", "media"
    )

    @classmethod
    def of(cls, **options: Any) -> EngineConfig:
        """Build from keywords, those of vLLM's engine among them: what has no effect is logged, once in a process.

        An unknown one raises UnknownOption with the nearest that exists, one that cannot be InvalidConfig.
        """
        for field in dataclasses.fields(cls):
            alias = field.metadata["alias"]
            if alias in options:
                if field.name in options:
                    raise InvalidConfig(f"{alias} is another name of {field.name}: give one of them.")
                options[field.name] = options.pop(alias)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        found = translate(options, defaults, PROGRAM)
        for name in found.options:
            if name not in defaults:
                raise UnknownOption.named(name, [*defaults, *(entry.name for entry in ENGINE)], "The engine")
        LOG.take(found.ignored.reasons, "engine")
        for line in (*found.lines, *found.warnings):
            logger.info("%s", line)
        # vLLM's None is "choose for me", which here is the default.
        given = {name: value for name, value in found.options.items() if value is not None}
        return cls(**given)

    def __post_init__(self) -> None:
        check_types(self)
        self._check_numbers()
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidConfig(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}, so that every sequence can take its token."
            )
        folder = self.encoder_cache_dir
        if folder is not None and (not folder or Path(folder).expanduser().is_file()):
            raise InvalidConfig(f"encoder_cache_dir must name a folder, which need not exist yet, got {folder!r}.")
        self._check_vision_workers()
        if self.speculative_config is not None:
            wanted = SpeculativeConfig.of(self.speculative_config)
            if wanted.model is not None and self.pipeline_parallel_size > 1:
                raise InvalidConfig(
                    f"speculative_config: a draft model is not run in a pipeline of {self.pipeline_parallel_size} "
                    "stages: take the method ngram, or tensor_parallel_size in place of pipeline_parallel_size."
                )
        self._check_backend()
        self._check_media()

    def _check_vision_workers(self) -> None:
        """Raise InvalidConfig for options that vision workers do not work with."""
        if self.vision_workers and self.layout.ranks > 1:
            raise InvalidConfig(
                f"vision_workers={self.vision_workers} is not possible with {self.layout.ranks} ranks, which encode "
                "tiles themselves: leave it out, or use one rank."
            )
        if self.vision_workers and self.speculation is not None and self.speculation.model is not None:
            raise InvalidConfig(
                f"vision_workers={self.vision_workers} is not possible with a draft model, which encodes tiles of its "
                "own beside the model's: leave it out, or use the method ngram."
            )

    def for_whole_answers(self) -> EngineConfig:
        """Return the options where nobody reads answers as they grow: `encode_budget`, if open, serves speed alone."""
        return self if self.encode_budget is not None else dataclasses.replace(self, encode_budget=_BATCH_ENCODE_BUDGET)

    @property
    def layout(self) -> Layout:
        """Layout of the model over ranks."""
        experts = self.expert_placement_strategy if self.enable_expert_parallel else None
        rows = self.sequence_parallel_tokens
        if rows is None and os.environ.get("VLLM_ASCEND_ENABLE_FLASHCOMM1") == "1":
            rows = FLASHCOMM_TOKENS
        sizes = self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size
        return Layout(*sizes, experts=experts, spread_rows=rows or None, tower=self.mm_encoder_tp_mode)

    @property
    def quantised_kv(self) -> str | None:
        """int8 or fp8; None = the KV cache keeps floats."""
        name = self.kv_cache_dtype.partition("_")[0]
        return name if name in ("int8", "fp8") else None

    @property
    def speculation(self) -> SpeculativeConfig | None:
        return None if self.speculative_config is None else SpeculativeConfig.of(self.speculative_config)

    def _check_numbers(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if name not in _MAY_BE_MINUS_ONE or value != -1:
                check_range(name, value, 0, above=True)
        check_range("gpu_memory_utilization", self.gpu_memory_utilization, 0, 1, above=True)
        check_range("mm_processor_cache_gb", self.mm_processor_cache_gb, 0, least_is="nothing is kept")
        check_range("vision_workers", self.vision_workers, 0, 64, least_is="none")
        check_range("sequence_parallel_tokens", self.sequence_parallel_tokens, 0, least_is="never")
        check_range("max_logprobs", self.max_logprobs, -1, least_is="no limit")

    def _check_backend(self) -> None:
        backend, size = self.distributed_executor_backend, self.layout.ranks
        check_range("nnodes", self.nnodes, 0, above=True)
        if backend == "uni" and size > 1:
            raise InvalidConfig(
                f"distributed_executor_backend=uni is one rank, and {size} are asked for: use mp or ray."
            )
        if backend == "ray":
            require_extra("ray", "ray", "distributed_executor_backend=ray")
        elif self.nnodes > 1:
            raise InvalidConfig(
                f"nnodes={self.nnodes}: ranks on several machines are started by Ray; add "
                "distributed_executor_backend=ray (docs/ray.md)."
            )
        if self.nnodes > size:
            raise InvalidConfig(f"nnodes={self.nnodes} is more than the {size} ranks there are: lower it.")

    def _check_media(self) -> None:
        if self.enable_mm_embeds and self.speculation is not None and self.speculation.model is not None:
            raise InvalidConfig(
                "enable_mm_embeds is not possible with a draft model, which encodes pictures by itself "
                f'({self.speculation.model}): guess by {{"method": "ngram", ...}}, or send pictures.'
            )
        aspect = self.max_image_aspect_ratio
        if aspect is not None and not (isinstance(aspect, (int, float)) and aspect >= 1):
            raise InvalidConfig(f"max_image_aspect_ratio must be at least 1 (only squares), got {aspect!r}.")
        if self.max_image_pixels > 178_956_970:
            raise InvalidConfig(
                f"max_image_pixels={self.max_image_pixels} is above 178956970, the most that Pillow opens: lower it."
            )
        for kind, limit in (self.limit_mm_per_prompt or {}).items():
            if kind not in ("image", "video"):
                hint = did_you_mean(kind, ("image", "video"))
                raise InvalidConfig(f"limit_mm_per_prompt knows image and video, got {kind!r}.{hint}")
            if (count := whole(limit)) is None or count < 0:
                raise InvalidConfig(f"limit_mm_per_prompt: {kind} must be a whole number from 0 on, got {limit!r}.")
        root = self.allowed_local_media_path
        if root is not None and not Path(root).is_dir():
            problem = "must be a directory." if Path(root).exists() else f"The path {root} does not exist."
            raise InvalidConfig(f"Invalid `--allowed-local-media-path`: {problem}")


_MAY_BE_MINUS_ONE = ("max_model_len", "num_frames")  # what fits, all
_POSITIVE = (
    "max_model_len",
    "block_size",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "encoder_cache_gb",
    "encoder_cache_dir_gb",
    "max_num_seqs",
    "max_graph_size",
    "max_num_batched_tokens",
    "encode_budget",
    "max_image_pixels",
    "num_frames",
    "fps",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
)
