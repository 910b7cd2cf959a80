"""EngineConfig: what the user wishes. `None` = choose for me; `plan.resolve` does, and says why.

Names, meanings and defaults are vLLM's where vLLM has the option; every field carries the line that `--help` prints.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, UnknownOption, did_you_mean
from tilewise.foreign.additional import FLASHCOMM_TOKENS
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
DeviceKind = Literal["auto", "cpu", "cuda", "npu"]
LoadFormat = Literal["auto", "safetensors", "dummy"]
LoadStrategy = Literal["lazy", "eager", "prefetch"]
TileBudget = Literal["each", "share"]
Hub = Literal["huggingface", "modelscope"]
Policy = Literal["fcfs", "priority"]
Backend = Literal["mp", "ray", "uni"]

logger = logging.getLogger("tilewise")

BATCH_ENCODE_BUDGET = 16.0
"""Default `encode_budget` where answers are read whole, and the most where tokens are read as they come."""
AUTO_LENGTH = -1
"""Value of `max_model_len` for the longest that fits."""


def options_of(environment: Environment) -> dict[str, Any]:
    """Return options that environment variables set. An option that was given explicitly wins over them."""
    return {"sequence_parallel_tokens": FLASHCOMM_TOKENS} if environment.flashcomm else {}


_model, _memory, _scheduling, _media = (
    partial(option, group=group) for group in ("model", "memory", "scheduling", "media")
)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Every option of the engine. Each works, or is refused with the reason."""

    model: str = _model(
        "demo",
        "'demo', a folder, a .gguf file, or a hub id such as OpenGVLab/InternVL3-8B; a folder of that name wins "
        "(one called demo is ./demo)",
    )
    revision: str | None = _model(
        None, "branch, tag or commit on the hub (default: main; master on ModelScope); a commit needs no network"
    )
    hub: Hub | None = _model(
        None, "where ids live (default: huggingface, or modelscope if VLLM_USE_MODELSCOPE=True); see docs/models.md"
    )
    download_dir: str | None = _model(
        None, "cache folder for downloads (default: the hub's own, as HF_HOME or MODELSCOPE_CACHE say)"
    )
    trust_remote_code: bool = _model(
        False, "accepted for compatibility; code of a checkpoint is never run, nor is it needed"
    )
    safetensors_load_strategy: LoadStrategy | None = _model(
        None,
        "lazy = weights are read as they are needed; prefetch = a thread reads ahead, for slow and network disks; "
        "eager = all is read first (default: lazy)",
    )
    device: DeviceKind = _model("auto", "what computes: cuda, npu, cpu, or auto = a GPU or an NPU where there is one")
    dtype: Dtype = _model("auto", "type of weights and activations")
    quantization: Quantization | None = _model(
        None,
        "int8 = matrices in floats are rounded to int8 as they are loaded, a scale for each output, and multiplied "
        "with rows rounded as they come: half the memory of bfloat16 and more speed, at some accuracy; fp8 = to E4M3 "
        "instead, but for the head, and multiplied with rows of floats (docs/cpu.md). "
        "How a quantised checkpoint is kept is found from its files; any other name is only compared with it",
    )
    max_model_len: int | None = _model(
        None, "longest prompt and answer together, in tokens: 8192, 40K, or auto = what fits", read=read_length
    )
    load_format: LoadFormat = _model("auto", "dummy = random weights, to try sizes and speed")
    enforce_eager: bool = _model(False, "launch every step op by op, capture no graphs")
    max_graph_size: int = _model(
        512,
        "on a GPU or an NPU, the most sequences of a captured step; sizes are 1, 2, 4, 8, 16 and so on, and a step is "
        "filled up to the next one",
    )
    lazy_graphs: bool = _model(
        False, "on a GPU or an NPU, capture a step when one of its size comes first, and not at the start"
    )
    seed: int | None = _model(
        0,
        "requests without a seed draw from this one, in the order in which they come: the same again in each run; "
        "None = another draw in every run",
    )
    tokenizer: str | None = _model(None, "folder or hub id of another tokenizer (default: the model's own)")
    tokenizer_revision: str | None = _model(None, "branch, tag or commit of the tokenizer on the hub")
    hf_token: str | None = _model(
        None, "token for private and gated models (default: HF_TOKEN, or that of a login)", shown=False
    )
    adapter: str | None = _model(
        None,
        "folder or hub id of a low-rank adapter that PEFT saved (LoRA, rsLoRA, DoRA): it is merged into the weights as "
        "they are loaded (docs/models.md)",
    )
    mmproj: str | None = _model(
        None, "vision tower and projector of a model in GGUF files (default: the mmproj*.gguf beside it)"
    )
    use_tqdm_on_load: bool = _model(True, "show a progress bar while the weights of a large model are read")

    block_size: int | None = _memory(None, "tokens a KV block (default: 16, on NPUs 128)")
    gpu_memory_utilization: float | None = _memory(
        None,
        "share of the device's memory that this engine takes for everything, the KV cache getting what is left",
        alias="device_memory_utilization",
    )
    kv_cache_memory_bytes: int | None = _memory(
        None, "memory for the KV cache (4G); wins over gpu_memory_utilization", read=read_amount
    )
    kv_cache_dtype: KVCacheDtype = _memory(
        "auto",
        "what the KV cache keeps: auto = the dtype of activations; int8, fp8 (E4M3) = 8 bits with a scale for each "
        "token and head, about half the memory of bfloat16 (docs/serving.md)",
    )
    num_gpu_blocks_override: int | None = _memory(None, "KV blocks, whatever memory there is; wins over all sizes")
    enable_prefix_caching: bool = _memory(True, "compute a beginning that prompts share once")
    encoder_cache_gb: float | None = _memory(None, "memory for encoded tiles, in GiB")
    encoder_cache_dir: str | None = _memory(
        None, "folder that keeps encoded tiles across restarts; processes may share it (default: none)"
    )
    encoder_cache_dir_gb: float = _memory(
        10.0, "most that encoder_cache_dir may hold, in GiB; the longest unused tiles are removed"
    )

    max_num_seqs: int = _scheduling(64, "sequences that run at once")
    max_num_batched_tokens: int = _scheduling(4096, "tokens computed in one step", read=read_amount)
    encode_budget: float | None = _scheduling(
        None,
        "tiles encoded behind a step while something decodes, in parts by layers (default: for as long as the step's "
        "tokens take, 40 ms at least and 160 ms at most; 16 in LLM and run-batch, where only the whole counts)",
    )
    scheduling_policy: Policy = _scheduling(
        "fcfs", "fcfs = first come, first served; priority = requests of lower priority number first"
    )
    async_scheduling: bool | None = _scheduling(
        None, "plan the next step while one runs; default: where another device computes"
    )
    speculative_config: dict[str, Any] | None = _scheduling(
        None,
        'guess tokens ahead and verify them together, as {"method": "ngram", "num_speculative_tokens": 4} or '
        '{"model": "OpenGVLab/InternVL3-1B", "num_speculative_tokens": 3}; answers stay the same',
    )
    batch_invariant: bool | None = _scheduling(
        None, "logits are bit by bit the same in any batch, at some speed (default: on if VLLM_BATCH_INVARIANT=1)"
    )
    check_numerics: bool = _scheduling(
        False,
        "end a request with an error where its logits, or embeddings of its tiles, are NaN or infinite, and let all "
        "others go on; without it, such an answer means nothing, and the log says so once (docs/serving.md)",
    )
    disable_log_stats: bool = _scheduling(True, "no line about throughput, load and caches every ten seconds")
    tensor_parallel_size: int = _scheduling(
        1,
        "ranks that share one model, each with some heads of every layer and its part of all other matrices; on a CPU "
        "they are processes that share its cores",
    )
    data_parallel_size: int = _scheduling(
        1,
        "replicas of the model, each an engine of its own; a request goes to the one that has the least work for it; "
        "on a CPU they share its cores and memory (docs/parallel.md)",
    )
    pipeline_parallel_size: int = _scheduling(
        1, "stages of a pipeline, each with its part of the layers; with tensor_parallel_size, so many ranks a stage"
    )
    mm_encoder_tp_mode: TowerMode = _scheduling(
        "data",
        "how tensor_parallel_size ranks encode tiles: data = each has the whole tower and takes some of the tiles, "
        "weights = each has some heads of the tower, and all take every tile",
    )
    vision_workers: int = _scheduling(
        0,
        "processes that encode tiles beside the engine's, which then only decodes; each has a tower of its own and a "
        "part of the cores",
    )
    cpu_binding: bool = _scheduling(
        False, "each rank of this machine keeps to processor cores of its own, where there are as many"
    )
    sequence_parallel_tokens: int | None = _scheduling(
        None,
        "in steps of so many tokens or more, each of tensor_parallel_size ranks norms a share of them, not all; 0 = "
        f"never (default: never, or {FLASHCOMM_TOKENS} if VLLM_ASCEND_ENABLE_FLASHCOMM1=1)",
    )
    enable_expert_parallel: bool = _scheduling(
        False, "each rank of a stage has some experts whole, not a part of every expert"
    )
    expert_placement_strategy: ExpertPlacement = _scheduling(
        "linear",
        "with enable_expert_parallel, which experts a rank has: linear = neighbouring ones, round_robin = in turn",
    )
    distributed_executor_backend: Backend | None = _scheduling(
        None,
        "where ranks are: mp = processes of this machine, ray = actors on the nodes of a Ray cluster (docs/ray.md), "
        "uni = one rank in the engine's process (default: mp where there are several)",
    )
    nnodes: int = _scheduling(
        1, "with distributed_executor_backend=ray, nodes that the cluster must have before ranks are placed"
    )
    disable_additional_properties: bool = _scheduling(
        True, "objects of schemas that list their properties have no others, unless a schema or a request says so"
    )
    disable_any_whitespace: bool = _scheduling(False, "structured answers in JSON have no white space")
    max_logprobs: int = _scheduling(20, "most log-probabilities a token that a request may ask for; -1 = all")

    limit_mm_per_prompt: dict[str, int] | None = _media(None, 'most media a prompt, as {"image": 4}')
    mm_processor_kwargs: dict[str, Any] | None = _media(
        None, "min_dynamic_patch, max_dynamic_patch, dynamic_image_size, use_thumbnail for all requests"
    )
    mm_processor_cache_gb: float | None = _media(
        None,
        "host memory for pictures already cut, in GiB, so that one sent again is not cut again; 0 = none (default: 4, "
        "or a quarter of what is free once the model is loaded, if that is less)",
    )
    enable_mm_embeds: bool = _media(
        False,
        "take embeddings in place of pictures (image_embeds), as `tilewise encode-server` makes them (default: off; "
        "docs/encode-server.md)",
    )
    tile_budget: TileBudget = _media(
        "each", "max_dynamic_patch for each picture (as the reference infers) or shared (as it trained)"
    )
    flash_router: bool = _media(True, "Flash checkpoints: let their router give easy tiles a quarter of the tokens")
    interleave_mm_strings: bool = _media(
        False, "keep pictures and texts in the order of a message; -hf checkpoints always do, as trained"
    )
    exif_orientation: bool = _media(
        True, "turn pictures as their camera says and videos as their file says (the reference does not)"
    )
    max_image_pixels: int = _media(89_478_485, "largest picture accepted, in pixels")
    num_frames: int = _media(32, "frames taken of a video; -1 = all, up to TILEWISE_MAX_CHOSEN_FRAMES")
    fps: float | None = _media(None, "frames a second of video, num_frames at most")
    allowed_local_media_path: str | None = _media(None, "folder below which file:// URLs may be read")
    allowed_media_domains: tuple[str, ...] | None = _media(
        None,
        "hosts that media may come from, private ones and networks too: minio.local, 10.0.0.0/8, and * for any public "
        "one (default: any public host; docs/serving.md)",
    )
    max_image_aspect_ratio: float | None = _media(
        None, "most that the longer side of a picture may be of the shorter one (default: no limit)"
    )

    @classmethod
    def of(cls, environment: Environment = Environment(), /, **options: Any) -> EngineConfig:
        """Build from keywords, those of vLLM's engine among them: what has no effect is logged, once in a process.

        Options that are left open may be set by the environment. An unknown one raises UnknownOption with the nearest
        that exists, one that cannot be InvalidConfig.
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
        return cls(**{**options_of(environment), **given})

    def __post_init__(self) -> None:
        check_types(self)
        self._check_numbers()
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidConfig(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least "
                f"max_num_seqs={self.max_num_seqs}, so that every sequence can take its token."
            )
        if self.adapter is not None and self.load_format == "dummy":
            raise InvalidConfig(
                f"adapter={self.adapter!r} has no effect on random weights (load_format=dummy): leave one of them out."
            )
        folder = self.encoder_cache_dir
        if folder is not None and (not folder or Path(folder).expanduser().is_file()):
            raise InvalidConfig(f"encoder_cache_dir must name a folder, which need not exist yet, got {folder!r}.")
        if self.vision_workers and self.layout.ranks > 1:
            raise InvalidConfig(
                f"vision_workers={self.vision_workers} is not possible with {self.layout.ranks} ranks, which encode "
                "tiles themselves: leave it out, or use one rank."
            )
        if self.speculation is not None and self.speculation.model is not None:
            self._check_draft(self.speculation.model)
        self._check_backend()
        self._check_media()

    def _check_draft(self, model: str) -> None:
        """Raise InvalidConfig for options that do not work with a draft model."""
        if self.vision_workers:
            raise InvalidConfig(
                f"vision_workers={self.vision_workers} is not possible with a draft model, which encodes tiles of its "
                "own beside the model's: leave it out, or use the method ngram."
            )
        if self.pipeline_parallel_size > 1:
            raise InvalidConfig(
                f"speculative_config: a draft model is not run in a pipeline of {self.pipeline_parallel_size} "
                "stages: take the method ngram, or tensor_parallel_size in place of pipeline_parallel_size."
            )
        if self.enable_mm_embeds:
            raise InvalidConfig(
                f"enable_mm_embeds is not possible with a draft model, which encodes pictures by itself ({model}): "
                'guess by {"method": "ngram", ...}, or send pictures.'
            )

    def for_whole_answers(self) -> EngineConfig:
        """Return the options where nobody reads answers as they grow: `encode_budget`, if open, serves speed alone."""
        return self if self.encode_budget is not None else dataclasses.replace(self, encode_budget=BATCH_ENCODE_BUDGET)

    @property
    def layout(self) -> Layout:
        """Layout of the model over ranks."""
        experts = self.expert_placement_strategy if self.enable_expert_parallel else None
        rows = self.sequence_parallel_tokens
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
    *("max_model_len", "block_size", "kv_cache_memory_bytes", "num_gpu_blocks_override", "encoder_cache_gb"),
    *("encoder_cache_dir_gb", "max_num_seqs", "max_graph_size", "max_num_batched_tokens", "encode_budget"),
    *("max_image_pixels", "num_frames", "fps"),
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
)
