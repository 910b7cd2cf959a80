"""Options of vLLM's engine and server, 0.10 to 0.33 and some older ones, that are none here, and what becomes of each.

docs/compatibility.md is written from this.
"""

from __future__ import annotations

from typing import Any, Literal

from tilewise.foreign.objects import capture_sizes, key_of, no_media_cache, no_request_log
from tilewise.foreign.translate import ForeignOption, other_name, refused, taken

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
_NO_LORA = "one adapter is merged into the model, by --adapter (docs/models.md); several at once are not served"
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
_NO_CODE = "no code of others is put into the server; use a proxy"
_ONE_SERVER = "one process serves; start several behind a proxy"
_NOT_SPOKEN = "OpenAI's API is what is spoken"
_ABOUT_A_SERVER = "it is about a server"
_CHAT_TEMPLATE = ForeignOption(
    *("chat_template", str, "never"),
    "a model is asked as it was trained to be; `tilewise inspect MODEL` shows the prompt and compares a Jinja file",
    ("",),
)

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
    *taken("built in", "code of a checkpoint is never run, nor is it needed", text="code_revision model_weights"),
    *taken("built in", "there is one implementation of each model, this one", text="model_impl"),
    *taken("built in", "only the files that are read are fetched", texts="ignore_patterns"),
    *taken("built in", "weights are read as they are needed, straight to where they are computed",
           text="pt_load_map_location"),
    *taken("built in", "safetensors_load_strategy says how weights are read",
           whole="max_parallel_loading_workers safetensors_prefetch_num_threads safetensors_prefetch_block_size"),
    *taken("built in", "nothing is deprecated", switch="allow_deprecated_quantization"),
    *taken("built in", "noise is made of 32 bits a token, whoever draws", switch="use_fp64_gumbel"),
    *taken("built in", "the windows of a model are what the checkpoint says", switch="disable_sliding_window"),

    # Several devices and machines
    *refused("not yet", _ONE_SEQUENCE, int, decode_context_parallel_size=1, prefill_context_parallel_size=1),
    *refused("never", _ONE_COMMAND, int, node_rank=0),
    *refused("not yet", _REPLICAS, int, data_parallel_start_rank=0),
    *refused("not yet", f"{_REPLICAS}; for a balancer of your own, start a server without it for each replica", int,
             data_parallel_rank=0),
    *refused("not yet", f"{_REPLICAS}; for a balancer of your own, start a server without it for each replica", bool,
             data_parallel_external_lb=False, data_parallel_multi_port_external_lb=False),
    *taken("built in", "one server shares requests out among all replicas of its machine",
           switch="data_parallel_hybrid_lb"),
    *refused("not yet", "all replicas are on this machine: leave it out", int,
             data_parallel_size_local="data_parallel_size"),
    *refused("not yet", "replicas are processes of this machine: use mp", str, data_parallel_backend="mp"),
    *taken("other device", f"{_EXPERTS}, so they are not balanced", switch="enable_elastic_ep enable_eplb"),
    *taken("built in", _MEETING, text="master_addr", whole="master_port"),
    *taken("other device", _ONE_MACHINE, text="data_parallel_address",
           whole="data_parallel_rpc_port distributed_timeout_seconds cpu_distributed_timeout_seconds dp_sync_interval",
           switch="ray_workers_use_nsight disable_nccl_for_dp_synchronization enable_nccl_comm_suspend "
                  "enable_fault_tolerance",
           object="fault_tolerance_config watchdog_config"),
    *taken("other device", "torch.distributed sums over ranks, in one way",
           switch="disable_custom_all_reduce dcp_q_replicate enable_hc_sp enable_batch_sharded_sampling "
                  "enable_shm_tensor_arena enable_dbo"),
    *taken("other device", "sequences are not split between ranks",
           whole="dcp_kv_cache_interleave_size cp_kv_cache_interleave_size ubatch_size dbo_decode_token_threshold "
                 "dbo_prefill_token_threshold",
           text="dcp_comm_backend"),
    *taken("other device", _EXPERTS, object="eplb_config", text="all2all_backend moe_backend",
           switch="enable_ep_weight_filter eplb_log_balancedness",
           whole="num_redundant_experts eplb_step_interval eplb_window_size elastic_ep_max_dp_size"),
    *taken("other device", _NUMA, switch="numa_bind", texts="numa_bind_nodes numa_bind_cpus"),
    *taken("other device", _TILES, text="mm_encoder_tp_dtype", switch="enable_multimodal_encoder_data_parallel"),

    # Kernels, graphs
    ForeignOption("compilation_config", _OBJECT, "other device", "cudagraph_mode NONE is --enforce-eager; of the rest "
            "every key is known, or refused, and one line says what became of it; of those without effect, the mode's "
            "value alone is looked at; a number by itself is that mode", by_key=True),
    ForeignOption("additional_config", _OBJECT, "other device", "options of vLLM-Ascend; one line a key says what "
            "became of it, and unknown keys are named", by_key=True),
    ForeignOption("optimization_level", Literal["0", "1", "2", "3"], "other device",
            "0 is --enforce-eager; there is nothing to compile, and the others are the same"),
    ForeignOption("performance_mode", Literal["balanced", "interactivity", "throughput"], "other device",
            "it chooses sizes of graphs, which are captured as they come"),
    *taken("other device", _GRAPHS, whole="max_seq_len_to_capture"),
    *taken("other device", _KERNELS, object="attention_config kernel_config ir_op_priority mamba_config",
           text="attention_backend linear_backend sparse_indexer_topk_backend jit_monitor_mode"),
    *taken("other device", "attention of the tower is the platform's", text="mm_encoder_attn_backend"),
    *taken("other device", _KERNELS,
           switch="disable_cascade_attn enable_flashinfer_autotune monokernel jit_monitor_verbose "
                  "enable_cumem_allocator"),
    *refused("not yet", "attention is computed in the type of the weights: leave it out", str,
             mm_encoder_attn_dtype="", override_attention_dtype="", mm_encoder_fp8_scale_path="",
             mm_encoder_fp8_scale_save_path=""),
    *taken("other device", "no attention is computed in fp8", number="mm_encoder_fp8_scale_save_margin"),
    *taken("other device", _NOT_INTERNVL,
           text="gdn_prefill_backend kda_decode_backend kda_prefill_backend mamba_backend mamba_cache_dtype "
                "mamba_cache_mode mamba_ssm_cache_dtype mamba_ssu_algorithm",
           whole="mamba_block_size mamba_cache_philox_rounds replayssm_buffer_len prefix_cache_retention_interval",
           switch="enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint use_replayssm "
                  "swa_bounded_replay kv_sharing_fast_prefill",
           object="diffusion_config engram_config override_neuron_config"),

    # Memory
    *taken("built in", "scales of an int8 or fp8 KV cache are of each token and head, found as it is written",
           switch="calculate_kv_scales"),
    *refused("not yet", "KV blocks of all layers hold the same: leave it out", _TEXTS, kv_cache_dtype_skip_layers=()),
    *taken("built in", "nothing is swapped: what was put aside is computed again, or found in the prefix cache",
           number="swap_space"),
    *taken("built in", "what was put aside is computed again, or found in the prefix cache", text="preemption_mode"),
    *refused("not yet", _WHOLE_ON_DEVICE, float, cpu_offload_gb=0),
    *refused("not yet", _WHOLE_ON_DEVICE, float, kv_offloading_size=0),
    *refused("not yet", _WHOLE_ON_DEVICE, int, offload_group_size=0),
    *taken("other device", "nothing is offloaded", whole="offload_num_in_group offload_prefetch_step",
           text="offload_backend kv_offloading_backend", texts="cpu_offload_params offload_params"),
    *refused("not yet", _NO_TRANSFER, _OBJECT, kv_transfer_config={}, ec_transfer_config={}, kv_events_config={}),
    *refused("not yet", "an engine does not sleep: stop it, weights are read again in seconds", bool,
             enable_sleep_mode=False),
    *taken("other device", "an engine does not sleep", text="sleep_mode_backend",
           switch="sleep_mode_offload_cudagraph", texts="sleep_preserve_parameter_names"),
    ForeignOption("prefix_caching_hash_algo",
            Literal["sha256", "sha256_cbor", "xxhash", "xxhash_cbor", "builtin", "sha256_cbor_64bit"], "built in",
            "blocks are known by BLAKE2b over tokens, tiles and salt, which is as safe as sha256"),
    ForeignOption("mm_hasher_algorithm", Literal["blake3", "sha256", "sha512"], "built in",
            "pictures are known by SHA-256"),
    *taken("built in", "a prefix is found at the end of each KV block", whole="prefix_match_unit"),
    *taken("built in", "there is one kind of KV block", switch="disable_hybrid_kv_cache_manager use_v2_block_manager"),
    *taken("built in", "KV blocks are counted before a request begins", number="watermark",
           switch="scheduler_reserve_full_isl"),
    *refused("never", "answers carry no marks", _OBJECT, watermark_config={}),

    # Scheduling
    *taken("built in", "prompts are always computed in chunks; max_num_batched_tokens is the size of a step",
           switch="enable_chunked_prefill"),
    *taken("built in", "a chunk may end between the tiles of a picture", switch="disable_chunked_mm_input"),
    *taken("built in", "a long prompt may take a whole step", whole="long_prefill_token_threshold"),
    *taken("built in", "prompts are computed one behind the other",
           whole="max_num_partial_prefills max_long_partial_prefills"),
    *taken("built in", _ONE_SCHEDULER,
           switch="long_prefill_token_threshold_adaptive multi_step_stream_outputs disable_async_output_proc",
           whole="num_scheduler_steps prefill_schedule_interval num_lookahead_slots", number="scheduler_delay_factor"),
    *taken("built in", "max_num_seqs is how many run at once", whole="max_num_active_seqs"),
    *taken("built in", "max_num_batched_tokens is the size of a step", whole="max_num_scheduled_tokens"),
    *taken("built in", "one thread makes prompts, others cut pictures (VLLM_MEDIA_LOADING_THREAD_COUNT)",
           whole="renderer_num_workers"),
    *refused("not yet", "answers cannot be led along given tokens", bool, enable_trace_replay=False),
    *refused("not yet", "the parts are not reported", bool, enable_return_routed_experts=False,
             return_sampling_mask=False),
    *refused("not yet", "the parts are not reported", _OBJECT, aux_output_config={}),
    ForeignOption("per_request_spec_decode_metrics", Literal["none", "summary", "detailed"], "built in",
            f"{_GUESSED}; /metrics counts them"),

    # Pictures and videos
    ForeignOption("mm_processor_cache_type", Literal["lru", "shm"], "built in",
            "pictures that were cut are kept once, for the whole server"),
    *taken("built in", "pictures are not kept in shared memory", whole="mm_shm_cache_max_object_size_mb"),
    ForeignOption("mm_tensor_ipc", Literal["direct_rpc", "torch_shm"], "built in",
            "tiles travel as bytes, not as tensors"),
    *taken("built in", "memory for pictures is counted, not profiled", switch="skip_mm_profiling"),
    *taken("built in", "the input is timed anyway", switch="enable_mm_processor_stats"),
    *taken("other device", "the processor cuts pictures", text="mm_processor_device", number="mm_ipc_gpu_memory_gb"),
    *taken("built in", "tiles are normalised as the model was trained, wherever that is done",
           switch="mm_device_do_normalize"),
    ForeignOption("media_io_kwargs", _OBJECT, "built in",
            "num_frames and fps of video are the options of that name; nothing else can be set", by_key=True),
    *refused("not yet", _VIDEO, float, video_pruning_rate=0),
    ForeignOption("video_pruning_method", Literal["evs", "vidcom2"], "built in",
            "no token of a video is left out"),

    # Adapters
    *refused("not yet", _NO_LORA, bool, enable_lora=False, enable_lora_bias=False, enable_tower_connector_lora=False,
             enable_moe_shared_loras=False, enable_mixed_moe_lora_format=False),
    *refused("not yet", _NO_LORA, _OBJECT, default_mm_loras={}),
    *taken("other device", _LORA_SIZES,
           whole="max_loras max_lora_rank max_cpu_loras lora_extra_vocab_size max_lora_cls_labels max_prompt_adapters "
                 "max_prompt_adapter_token",
           text="lora_dtype", switch="fully_sharded_loras specialize_active_lora", texts="lora_target_modules"),

    # Structured answers, logs
    *refused("not yet", "the routes of chats and completions are what is served", bool, tokens_only=False),
    ForeignOption("structured_outputs_config", _OBJECT, "built in",
            "llguidance sees to structured answers, whatever `backend` names; other keys are options of a request"),
    *taken("built in", "llguidance sees to structured answers, and nothing else is tried",
           switch="guided_decoding_disable_fallback"),
    *refused("not yet", "it is an option of a request, in structured_outputs", bool,
             guided_decoding_disable_additional_properties=False, guided_decoding_disable_any_whitespace=False),
    *taken("built in", "reasoning_parser says how reasoning is taken out", switch="enable_reasoning"),
    *refused("not yet", "thinking is limited by max_tokens alone, and stands between these", _OBJECT,
             reasoning_config=({}, {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"})),
    *taken("built in", "there is no profiler to be started by a request", object="profiler_config"),
    *taken("built in", "blocks' lifetimes are not measured", switch="kv_cache_metrics"),
    *taken("built in", "operations are not counted", switch="enable_mfu_metrics"),
    *taken("built in", "/metrics has the histograms of docs/monitoring.md", object="custom_histogram_buckets"),
    *taken("built in", "blocks' lifetimes are not measured", number="kv_cache_metrics_sample"),
    *taken("built in", _COUNTED,
           switch="cudagraph_metrics enable_layerwise_nvtx_tracing enable_logging_iteration_details "
                  "aggregate_engine_logging"),
    *taken("built in", "no metric is hidden", text="show_hidden_metrics_for_version"),
    *taken("built in", "a span has the phases of its request; there are no finer ones",
           texts="collect_detailed_traces"),
    *taken("built in", "the form of log lines is vLLM's and cannot be changed", text="log_config_file logging_config"),
    *taken("built in", "VLLM_LOGGING_LEVEL is the least level of log lines", text="log_level"),

    # Spelt otherwise here
    *other_name("True is mm_processor_cache_gb=0", bool, disable_mm_preprocessor_cache=no_media_cache),
    *other_name("it is `backend` in structured_outputs_config", str,
                guided_decoding_backend=key_of("structured_outputs_config", "backend")),
    *other_name("it is a key of speculative_config", str, spec_method=key_of("speculative_config", "method"),
                spec_model=key_of("speculative_config", "model"),
                speculative_model=key_of("speculative_config", "model")),
    *other_name("it is num_speculative_tokens in speculative_config", int,
                spec_tokens=key_of("speculative_config", "num_speculative_tokens"),
                num_speculative_tokens=key_of("speculative_config", "num_speculative_tokens")),
    *other_name("it is a key of speculative_config", int,
                ngram_prompt_lookup_max=key_of("speculative_config", "prompt_lookup_max"),
                ngram_prompt_lookup_min=key_of("speculative_config", "prompt_lookup_min")),
    *other_name("it is cudagraph_capture_sizes in compilation_config", _TEXTS, cuda_graph_sizes=capture_sizes,
                cudagraph_capture_sizes=capture_sizes),
    *other_name("it is a key of compilation_config", int,
                max_cudagraph_capture_size=key_of("compilation_config", "max_cudagraph_capture_size")),
)  # fmt: skip

PROGRAM: tuple[ForeignOption, ...] = (
    *ENGINE,
    *taken("built in", _ABOUT_A_SERVER, switch="fail_on_environ_validation"),
    _CHAT_TEMPLATE,
    *taken("built in", "results carry no name of a model", texts="served_model_name"),
    *refused("not yet", "SamplingParams say how tokens are chosen", str, generation_config=("auto", "vllm")),
    *refused("not yet", "SamplingParams say how tokens are chosen", _OBJECT, override_generation_config={}),
    *taken("built in", "texts of results are whole, thinking included", text="reasoning_parser"),
    *taken("built in", "each new piece of a stream is given", whole="stream_interval"),
    *taken("built in", _ABOUT_A_SERVER, switch="enable_log_requests disable_log_requests",
           text="otlp_traces_endpoint"),
    *taken("built in", "a call waits for all of its requests", whole="max_num_queued_reqs max_num_queued_tokens",
           number="shutdown_timeout"),
)  # fmt: skip
"""Options that EngineArgs and LLM take; those behind the engine's are for a server alone."""

SERVER: tuple[ForeignOption, ...] = (
    *ENGINE,
    *taken("built in", _ONE_SERVER, whole="api_server_count"),
    *refused("not yet", "a server without HTTP is for several machines", bool, headless=False),
    *taken("built in", _ONE_SERVER, whole="data_parallel_supervisor_port dp_supervisor_probe_failure_threshold",
           number="dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s"),
    *taken("built in", "the engine has a process of its own, so that it can die alone",
           switch="disable_frontend_multiprocessing"),
    *refused("not yet", "HTTP is what is spoken", bool, grpc=False, enable_scale_out=False),
    *refused("not yet", "HTTP is what is spoken", int, grpc_port=None),
    *refused("never", _NO_CODE, _TEXTS, middleware=()),
    *refused("never", _NO_CODE, str, tool_parser_plugin=""),
    *refused("not yet", "the server calls no tools; it names those that a model wants called", str, tool_server=""),
    *refused("not yet", "certificates are read once, at the start", bool, enable_ssl_refresh=False),
    *refused("not yet", "/docs loads its page from the network", bool, enable_offline_docs=False),
    *refused("not yet", _NO_LORA, _TEXTS, lora_modules=()),
    _CHAT_TEMPLATE,
    *refused("never", "templates of callers are not run", bool, trust_request_chat_template=False),
    *refused("never", "answers are the assistant's", str, response_role="assistant"),
    ForeignOption("chat_template_content_format", Literal["auto", "string", "openai"], "built in",
            "the built-in templates take messages in both forms"),
    *taken("built in", "requests may set mm_processor_kwargs, within the limits of the model",
           switch="trust_request_mm_kwargs"),
    *taken("built in", "tools are not in the prompt then, as they may not be called",
           switch="exclude_tools_when_tool_choice_none"),
    *taken("built in", "a call that is asked for by name or required follows its schema", text="tool_strict_level"),
    *refused("not yet", "efforts are what the template knows; set chat_template_kwargs", _OBJECT,
             reasoning_effort_map={}),
    *refused("built in", "usage always has them", bool, enable_prompt_tokens_details=(True, False)),
    *taken("built in", "/load always counts running requests", switch="enable_server_load_tracking"),
    *taken("built in", "answers are logged whole, not piece by piece", switch="enable_log_deltas"),
    *taken("built in", "errors of this program are logged with their trace, those of callers without",
           switch="log_error_stack"),
    *taken("built in", f"{_NOT_SPOKEN}, and nothing of Cohere's", text="cohere_format",
           switch="cohere_is_reasoning_model"),
    *taken("built in", "thinking that a Messages body disables is off", text="anthropic_disabled_thinking_effort"),
    *taken("built in", "models answer; there is no ranking", switch="enable_flash_late_interaction"),
    ForeignOption("fingerprint_mode", Literal["full", "hash", "none", "custom"], "built in",
            "system_fingerprint is null"),
    *taken("built in", "system_fingerprint is null", text="fingerprint_value"),
    *other_name("True is enable_log_requests=False, which is the default", bool,
                disable_log_requests=no_request_log),
)  # fmt: skip
"""Options that vLLM's server takes."""
