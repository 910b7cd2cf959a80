"""Arguments of vLLM's engine, 0.10 to 0.33 and some older ones, and what becomes of each.

A name that is an option as well is listed for the values that the option cannot take yet. docs/compatibility.md is
written from this.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewise.foreign.entry import ForeignOption, refused, taken

_OBJECT, _TEXTS = dict[str, Any], tuple[str, ...]
_ONE_SEQUENCE = "a sequence is not shared out over ranks, whose layouts are -tp, -pp, -dp and -ep: use 1"
_ONE_MACHINE = "one machine computes, so there is nobody to find or to wait for"
_REPLICAS = "one server stands before all replicas of its machine (-dp): leave it out"
_ONE_COMMAND = (
    "one command starts all ranks: on the other machines run only `ray start --address=...`, see docs/ray.md, "
    "and leave it out"
)
_MEETING = "ranks meet at the first one's address, by which Ray knows its node, and at a free port"
_EXPERTS = "experts stay where they are loaded, and each is there once"
_TILES = "ranks share out tiles, each with the whole tower (data); answers are the same"
_NUMA = "threads are bound by OMP_PROC_BIND and OMP_PLACES, or by numactl"
_NO_LORA = "adapters are not loaded: merge them into the checkpoint"
_LORA_SIZES = "there are no LoRA adapters, so their sizes are no matter"
_GENERATES = "models answer; there is no pooling, ranking or classifying"
_NOT_INTERNVL = "it is about models that are no InternVL"
_KERNELS = "kernels are the platform's, and give the same answers"
_WHOLE_ON_DEVICE = "weights and KV blocks stay where they are computed; take a smaller model, or int8"
_NO_TRANSFER = "KV blocks do not travel between engines"
_NO_SPECIAL = "another class or code of others is not put into the engine"
_GUESSED = "guesses are compared in one way; answers are the same"
_VIDEO = "no token of a video is left out, use 0"
_COUNTED = "it is counted another way, see docs/monitoring.md"
_GRAPHS = "passes are captured as they come, each size when it comes first"
_ONE_SCHEDULER = "the scheduler is the engine's own; answers do not depend on it"

ENGINE: tuple[ForeignOption, ...] = (
    # The model
    *refused("not yet", _GENERATES, str, task=("auto", "generate"), runner=("auto", "generate"),
             convert=("auto", "none")),
    *refused("not yet", _GENERATES, _OBJECT, pooler_config={}, override_pooler_config={}),
    *refused("not yet", "the model's own text is what goes in and out; ids come beside it, so leave this out", bool,
             skip_tokenizer_init=False),
    *refused("not yet", "there is one reader of each model's tokenizer, which is auto", str,
             tokenizer_mode=("auto", "hf", "slow", "fast")),
    *refused("not yet", "config.json is what is read, use auto", str, config_format=("auto", "hf")),
    *refused("not yet", "the folder of the model has its config: put config.json there", str, hf_config_path=""),
    *refused("not yet", "config.json is taken as it is: change it in a folder of your own, or use mm_processor_kwargs "
             "for tiles", _OBJECT, hf_overrides={}),
    *refused("not yet", "positions are what the checkpoint says, see rope_scaling in its config.json", _OBJECT,
             rope_scaling={}),
    *refused("not yet", "positions are what the checkpoint says, see rope_theta in its config.json", float,
             rope_theta=None),
    *refused("not yet", "how a checkpoint is quantised is found from its files; int8 and fp8 have nothing to be set",
             _OBJECT, quantization_config={}),
    *refused("not yet", "safetensors are read in one way, which has nothing to be set", _OBJECT,
             model_loader_extra_config={}, weight_transfer_config={}),
    *refused("not yet", "GPUs are chosen by CUDA_VISIBLE_DEVICES: leave it out", str, device_ids=""),
    *refused("not yet", "log-probabilities are those before temperature and penalties: use raw_logprobs", str,
             logprobs_mode="raw_logprobs"),
    *refused("never", _NO_SPECIAL, str, worker_cls="auto", worker_extension_cls="",
             scheduler_cls="vllm.core.scheduler.Scheduler", io_processor_plugin="",
             reasoning_parser_plugin="", logits_processor_pattern=""),
    *refused("never", f"{_NO_SPECIAL}; logit_bias, allowed_token_ids and bad_words are options of requests", _TEXTS,
             logits_processors=()),
    *refused("never", _NO_SPECIAL, _OBJECT, model_class_overrides={}, ec_manager_config={}),
    *refused("not yet", "embeddings are not taken in place of prompts", bool, enable_prompt_embeds=False),
    *refused("not yet", "a model is loaded whole", bool, language_model_only=False, mm_encoder_only=False),
    *refused("not yet", "adapters of prompts are not loaded", bool, enable_prompt_adapter=False),
    *taken("built in", "code of a checkpoint is never run, nor is it needed", str, "code_revision", "model_weights"),
    *taken("built in", "there is one implementation of each model, this one", str, "model_impl"),
    *taken("built in", "only the files that are read are fetched", _TEXTS, "ignore_patterns"),
    *taken("built in", "weights are read as they are needed, straight to where they are computed", str,
           "pt_load_map_location"),
    *taken("built in", "safetensors_load_strategy says how weights are read", int, "max_parallel_loading_workers",
           "safetensors_prefetch_num_threads", "safetensors_prefetch_block_size"),
    *taken("built in", "nothing is deprecated", bool, "allow_deprecated_quantization"),
    *taken("built in", "noise is made of 32 bits a token, whoever draws", bool, "use_fp64_gumbel"),
    *taken("built in", "the windows of a model are what the checkpoint says", bool, "disable_sliding_window"),

    # Several devices and machines
    *refused("not yet", _ONE_SEQUENCE, int, decode_context_parallel_size=1, prefill_context_parallel_size=1),
    *refused("never", _ONE_COMMAND, int, node_rank=0),
    *refused("not yet", _REPLICAS, int, data_parallel_start_rank=0),
    *refused("not yet", f"{_REPLICAS}; for a balancer of your own, start a server without it for each replica", int,
             data_parallel_rank=0),
    *refused("not yet", f"{_REPLICAS}; for a balancer of your own, start a server without it for each replica", bool,
             data_parallel_external_lb=False, data_parallel_multi_port_external_lb=False),
    *taken("built in", "one server shares requests out among all replicas of its machine", bool,
           "data_parallel_hybrid_lb"),
    *refused("not yet", "all replicas are on this machine: leave it out", int,
             data_parallel_size_local="data_parallel_size"),
    *refused("not yet", "replicas are processes of this machine: use mp", str, data_parallel_backend="mp"),
    *taken("other device", f"{_EXPERTS}, so they are not balanced", bool, "enable_elastic_ep", "enable_eplb"),
    *taken("built in", _MEETING, str, "master_addr"),
    *taken("built in", _MEETING, int, "master_port"),
    *taken("other device", _ONE_MACHINE, str, "data_parallel_address"),
    *taken("other device", _ONE_MACHINE, int, "data_parallel_rpc_port", "distributed_timeout_seconds",
           "cpu_distributed_timeout_seconds", "dp_sync_interval"),
    *taken("other device", _ONE_MACHINE, bool, "ray_workers_use_nsight", "disable_nccl_for_dp_synchronization",
           "enable_nccl_comm_suspend", "enable_fault_tolerance"),
    *taken("other device", _ONE_MACHINE, _OBJECT, "fault_tolerance_config", "watchdog_config"),
    *taken("other device", "torch.distributed sums over ranks, in one way", bool,
           "disable_custom_all_reduce", "dcp_q_replicate", "enable_hc_sp", "enable_batch_sharded_sampling",
           "enable_shm_tensor_arena", "enable_dbo"),
    *taken("other device", "sequences are not split between ranks", int,
           "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size", "ubatch_size", "dbo_decode_token_threshold",
           "dbo_prefill_token_threshold"),
    *taken("other device", "sequences are not split between ranks", str, "dcp_comm_backend"),
    *taken("other device", _EXPERTS, _OBJECT, "eplb_config"),
    *taken("other device", _EXPERTS, str, "all2all_backend", "moe_backend"),
    *taken("other device", _EXPERTS, bool, "enable_ep_weight_filter", "eplb_log_balancedness"),
    *taken("other device", _EXPERTS, int, "num_redundant_experts", "eplb_step_interval", "eplb_window_size",
           "elastic_ep_max_dp_size"),
    *taken("other device", _NUMA, bool, "numa_bind"),
    *taken("other device", _NUMA, _TEXTS, "numa_bind_nodes", "numa_bind_cpus"),
    *taken("other device", _TILES, str, "mm_encoder_tp_dtype"),
    *taken("other device", _TILES, bool, "enable_multimodal_encoder_data_parallel"),

    # Kernels, graphs
    ForeignOption("compilation_config", _OBJECT, "other device", "cudagraph_mode NONE is --enforce-eager; of the rest "
            "every key is checked, and one line says what became of it; a number alone is its mode", by_key=True),
    ForeignOption("additional_config", _OBJECT, "other device", "options of vLLM-Ascend; one line a key says what "
            "became of it, and unknown keys are named", by_key=True),
    *taken("other device", "0 is --enforce-eager; there is nothing to compile, and the others are the same",
           Literal["0", "1", "2", "3"], "optimization_level"),
    *taken("other device", "it chooses sizes of graphs, which are captured as they come",
           Literal["balanced", "interactivity", "throughput"], "performance_mode"),
    *taken("other device", _GRAPHS, int, "max_seq_len_to_capture"),
    *taken("other device", _KERNELS, _OBJECT, "attention_config", "kernel_config", "ir_op_priority", "mamba_config"),
    *taken("other device", _KERNELS, str, "attention_backend", "linear_backend", "sparse_indexer_topk_backend",
           "jit_monitor_mode"),
    *taken("other device", "attention of the tower is the platform's", str, "mm_encoder_attn_backend"),
    *taken("other device", _KERNELS, bool, "disable_cascade_attn", "enable_flashinfer_autotune", "monokernel",
           "jit_monitor_verbose", "enable_cumem_allocator"),
    *refused("not yet", "attention is computed in the type of the weights: leave it out", str,
             mm_encoder_attn_dtype="", override_attention_dtype="", mm_encoder_fp8_scale_path="",
             mm_encoder_fp8_scale_save_path=""),
    *taken("other device", "no attention is computed in fp8", float, "mm_encoder_fp8_scale_save_margin"),
    *taken("other device", _NOT_INTERNVL, str, "gdn_prefill_backend", "kda_decode_backend", "kda_prefill_backend",
           "mamba_backend", "mamba_cache_dtype", "mamba_cache_mode", "mamba_ssm_cache_dtype", "mamba_ssu_algorithm"),
    *taken("other device", _NOT_INTERNVL, int, "mamba_block_size", "mamba_cache_philox_rounds",
           "replayssm_buffer_len", "prefix_cache_retention_interval"),
    *taken("other device", _NOT_INTERNVL, bool, "enable_mamba_cache_stochastic_rounding",
           "enable_mamba_shared_prefix_checkpoint", "use_replayssm", "swa_bounded_replay", "kv_sharing_fast_prefill"),
    *taken("other device", _NOT_INTERNVL, _OBJECT, "diffusion_config", "engram_config", "override_neuron_config"),

    # Memory
    *taken("built in", "scales of an int8 or fp8 KV cache are of each token and head, found as it is written", bool,
           "calculate_kv_scales"),
    *refused("not yet", "KV blocks of all layers hold the same: leave it out", _TEXTS, kv_cache_dtype_skip_layers=()),
    *taken("built in", "nothing is swapped: what was put aside is computed again, or found in the prefix cache", float,
           "swap_space"),
    *taken("built in", "what was put aside is computed again, or found in the prefix cache", str, "preemption_mode"),
    *refused("not yet", _WHOLE_ON_DEVICE, float, cpu_offload_gb=0),
    *refused("not yet", _WHOLE_ON_DEVICE, float, kv_offloading_size=0),
    *refused("not yet", _WHOLE_ON_DEVICE, int, offload_group_size=0),
    *taken("other device", "nothing is offloaded", int, "offload_num_in_group", "offload_prefetch_step"),
    *taken("other device", "nothing is offloaded", str, "offload_backend", "kv_offloading_backend"),
    *taken("other device", "nothing is offloaded", _TEXTS, "cpu_offload_params", "offload_params"),
    *refused("not yet", _NO_TRANSFER, _OBJECT, kv_transfer_config={}, ec_transfer_config={}, kv_events_config={}),
    *refused("not yet", "an engine does not sleep: stop it, weights are read again in seconds", bool,
             enable_sleep_mode=False),
    *taken("other device", "an engine does not sleep", str, "sleep_mode_backend"),
    *taken("other device", "an engine does not sleep", bool, "sleep_mode_offload_cudagraph"),
    *taken("other device", "an engine does not sleep", _TEXTS, "sleep_preserve_parameter_names"),
    *taken("built in", "blocks are known by BLAKE2b over tokens, tiles and salt, which is as safe as sha256",
           Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor", "builtin", "sha256_cbor_64bit"],
           "prefix_caching_hash_algo"),
    *taken("built in", "pictures are known by BLAKE2b, which is as safe", Literal["blake3", "sha256", "sha512"],
           "mm_hasher_algorithm"),
    *taken("built in", "a prefix is found at the end of each KV block", int, "prefix_match_unit"),
    *taken("built in", "there is one kind of KV block", bool, "disable_hybrid_kv_cache_manager",
           "use_v2_block_manager"),
    *taken("built in", "KV blocks are counted before a request begins", float, "watermark"),
    *taken("built in", "KV blocks are counted before a request begins", bool, "scheduler_reserve_full_isl"),
    *refused("never", "answers carry no marks", _OBJECT, watermark_config={}),

    # Scheduling
    *taken("built in", "prompts are always computed in chunks; max_num_batched_tokens is the size of a step", bool,
           "enable_chunked_prefill"),
    *taken("built in", "a chunk may end between the tiles of a picture", bool, "disable_chunked_mm_input"),
    *taken("built in", "a long prompt may take a whole step", int, "long_prefill_token_threshold"),
    *taken("built in", "prompts are computed one behind the other", int, "max_num_partial_prefills",
           "max_long_partial_prefills"),
    *taken("built in", _ONE_SCHEDULER, bool, "long_prefill_token_threshold_adaptive", "multi_step_stream_outputs",
           "disable_async_output_proc"),
    *taken("built in", _ONE_SCHEDULER, int, "num_scheduler_steps", "prefill_schedule_interval", "num_lookahead_slots"),
    *taken("built in", _ONE_SCHEDULER, float, "scheduler_delay_factor"),
    *taken("built in", "max_num_seqs is how many run at once", int, "max_num_active_seqs"),
    *taken("built in", "max_num_batched_tokens is the size of a step", int, "max_num_scheduled_tokens"),
    *taken("built in", "one thread makes prompts, others cut pictures (VLLM_MEDIA_LOADING_THREAD_COUNT)", int,
           "renderer_num_workers"),
    *refused("not yet", "answers cannot be led along given tokens", bool, enable_trace_replay=False),
    *refused("not yet", "the parts are not reported", bool, enable_return_routed_experts=False,
             return_sampling_mask=False),
    *refused("not yet", "the parts are not reported", _OBJECT, aux_output_config={}),
    *taken("built in", f"{_GUESSED}; /metrics counts them", Literal["none", "summary", "detailed"],
           "per_request_spec_decode_metrics"),

    # Pictures and videos
    *taken("built in", "pictures that were cut are kept once, for the whole server", Literal["lru", "shm"],
           "mm_processor_cache_type"),
    *taken("built in", "pictures are not kept in shared memory", int, "mm_shm_cache_max_object_size_mb"),
    *taken("built in", "tiles travel as bytes, not as tensors", Literal["direct_rpc", "torch_shm"], "mm_tensor_ipc"),
    *taken("built in", "memory for pictures is counted, not profiled", bool, "skip_mm_profiling"),
    *taken("built in", "the input is timed anyway", bool, "enable_mm_processor_stats"),
    *taken("other device", "the processor cuts pictures", str, "mm_processor_device"),
    *taken("other device", "the processor cuts pictures", float, "mm_ipc_gpu_memory_gb"),
    *taken("built in", "tiles are normalised as the model was trained, wherever that is done", bool,
           "mm_device_do_normalize"),
    ForeignOption("media_io_kwargs", _OBJECT, "built in",
            "num_frames and fps of video are the options of that name; nothing else can be set", by_key=True),
    *refused("not yet", _VIDEO, float, video_pruning_rate=0),
    *taken("built in", "no token of a video is left out", Literal["evs", "vidcom2"], "video_pruning_method"),

    # Adapters
    *refused("not yet", _NO_LORA, bool, enable_lora=False, enable_lora_bias=False, enable_tower_connector_lora=False,
             enable_moe_shared_loras=False, enable_mixed_moe_lora_format=False),
    *refused("not yet", _NO_LORA, _OBJECT, default_mm_loras={}),
    *taken("other device", _LORA_SIZES, int, "max_loras", "max_lora_rank", "max_cpu_loras", "lora_extra_vocab_size",
           "max_lora_cls_labels", "max_prompt_adapters", "max_prompt_adapter_token"),
    *taken("other device", _LORA_SIZES, str, "lora_dtype"),
    *taken("other device", _LORA_SIZES, bool, "fully_sharded_loras", "specialize_active_lora"),
    *taken("other device", _LORA_SIZES, _TEXTS, "lora_target_modules"),

    # Structured answers, logs
    *refused("not yet", "the routes of chats and completions are what is served", bool, tokens_only=False),
    ForeignOption("structured_outputs_config", _OBJECT, "built in",
            "llguidance sees to structured answers, whatever `backend` names; other keys are options of a request"),
    *taken("built in", "llguidance sees to structured answers, and nothing else is tried", bool,
           "guided_decoding_disable_fallback"),
    *refused("not yet", "it is an option of a request, in structured_outputs", bool,
             guided_decoding_disable_additional_properties=False, guided_decoding_disable_any_whitespace=False),
    *taken("built in", "reasoning_parser says how reasoning is taken out", bool, "enable_reasoning"),
    *refused("not yet", "thinking is limited by max_tokens alone, and stands between these", _OBJECT,
             reasoning_config=({}, {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"})),
    *taken("built in", "there is no profiler to be started by a request", _OBJECT, "profiler_config"),
    *taken("built in", "blocks' lifetimes are not measured", bool, "kv_cache_metrics"),
    *taken("built in", "operations are not counted", bool, "enable_mfu_metrics"),
    *taken("built in", "/metrics has the histograms of docs/monitoring.md", _OBJECT, "custom_histogram_buckets"),
    *taken("built in", "blocks' lifetimes are not measured", float, "kv_cache_metrics_sample"),
    *taken("built in", _COUNTED, bool, "cudagraph_metrics", "enable_layerwise_nvtx_tracing",
           "enable_logging_iteration_details", "aggregate_engine_logging"),
    *taken("built in", "no metric is hidden", str, "show_hidden_metrics_for_version"),
    *taken("built in", "a span has the phases of its request; there are no finer ones", _TEXTS,
           "collect_detailed_traces"),
    *taken("built in", "the form of log lines is vLLM's and cannot be changed", str, "log_config_file",
           "logging_config"),
    *taken("built in", "VLLM_LOGGING_LEVEL is the least level of log lines", str, "log_level"),

    # Spelt otherwise here
    *taken("other name", "True is mm_processor_cache_gb=0", bool, "disable_mm_preprocessor_cache"),
    *taken("other name", "it is `backend` in structured_outputs_config", str, "guided_decoding_backend"),
    *taken("other name", "it is a key of speculative_config", str, "spec_method", "spec_model", "speculative_model"),
    *taken("other name", "it is num_speculative_tokens in speculative_config", int, "spec_tokens",
           "num_speculative_tokens"),
    *taken("other name", "it is a key of speculative_config", int, "ngram_prompt_lookup_max",
           "ngram_prompt_lookup_min"),
    *taken("other name", "it is cudagraph_capture_sizes in compilation_config", _TEXTS, "cuda_graph_sizes",
           "cudagraph_capture_sizes"),
    *taken("other name", "it is a key of compilation_config", int, "max_cudagraph_capture_size"),
)  # fmt: skip

IN_A_PROGRAM: tuple[ForeignOption, ...] = (
    *taken("built in", "it is about a server", bool, "fail_on_environ_validation"),
    *refused("never", "a model is asked as it was trained to be; `tilewise inspect MODEL` shows the prompt and "
             "compares a Jinja file", str, chat_template=""),
    *taken("built in", "results carry no name of a model", _TEXTS, "served_model_name"),
    *refused("not yet", "SamplingParams say how tokens are chosen", str, generation_config=("auto", "vllm")),
    *refused("not yet", "SamplingParams say how tokens are chosen", _OBJECT, override_generation_config={}),
    *taken("built in", "texts of results are whole, thinking included", str, "reasoning_parser"),
    *taken("built in", "each new piece of a stream is given", int, "stream_interval"),
    *taken("built in", "it is about a server", bool, "enable_log_requests", "disable_log_requests"),
    *taken("built in", "it is about a server", str, "otlp_traces_endpoint"),
    *taken("built in", "a call waits for all of its requests", int, "max_num_queued_reqs", "max_num_queued_tokens"),
    *taken("built in", "a call waits for all of its requests", float, "shutdown_timeout"),
)  # fmt: skip
"""Options that EngineArgs take and only a server has a use for."""
