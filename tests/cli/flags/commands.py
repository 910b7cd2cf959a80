"""The command lines of the guides, flag by flag."""

GRAPHS = '{"cudagraph_mode":"FULL_DECODE_ONLY", "cudagraph_capture_sizes":[4,32,64,128,192,256,512]}'
ADDITIONAL = '{"enable_weight_nz_layout": true, "enable_cpu_binding": true}'
ASCEND = {
    "VLLM_ASCEND_ENABLE_FLASHCOMM1": "1",
    "VLLM_ASCEND_ENABLE_FUSED_MC2": "1",
    "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    "TASK_QUEUE_ENABLE": "1",
    "HCCL_OP_EXPANSION_MODE": "AIV",
    "OMP_PROC_BIND": "false",
    "OMP_NUM_THREADS": "1",
    "VLLM_USE_V1": "1",
    "VLLM_TORCH_PROFILER_WITH_STACK": "0",
    "HCCL_BUFFSIZE": "1536",
}

QUANTISED_38B = (
    *("/models/InternVL3_5-38B-w8a8/", "--port", "2002", "--served-model-name", "internvl3_5", "--trust-remote-code"),
    *("--async-scheduling", "--max-model-len", "40960", "--max-num-batched-tokens", "16384"),
    *("--tensor-parallel-size", "4", "--max-num-seqs", "32", "--gpu-memory-utilization", "0.9", "--async-scheduling"),
    *("--compilation-config", GRAPHS, "--additional-config", ADDITIONAL, "--mm-processor-cache-gb", "0"),
    *("--enable-chunked-prefill", "--enable-prefix-caching", "--safetensors-load-strategy", "prefetch"),
    *("--allowed-local-media-path", "/"),
)
QUANTISED_241B = (
    *("/models/InternVL3_5-241B-A28B-w8a8/", "--port", "2001", "--served-model-name", "internvl3_5"),
    *("--trust-remote-code", "--async-scheduling", "--max-model-len", "40960", "--max-num-batched-tokens", "16384"),
    *("--tensor-parallel-size", "16", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.9"),
    *("--async-scheduling", "--compilation-config", GRAPHS, "--additional-config", ADDITIONAL),
    *("--mm-processor-cache-gb", "0", "--enable-chunked-prefill", "--enable-prefix-caching"),
    *("--enable-expert-parallel", "--safetensors-load-strategy", "prefetch", "--allowed-local-media-path", "/"),
)
PLAIN_38B = (
    *("OpenGVLab/InternVL3_5-38B", "--tensor-parallel-size", "2", "--dtype", "bfloat16"),
    *("--max_model_len", "16384", "--max-num-batched-tokens", "16384"),
)
PLAIN_241B = (
    *("OpenGVLab/InternVL3_5-241B-A28B", "--host", "0.0.0.0", "--port", "8000", "--tensor-parallel-size", "16"),
    *("--max-model-len", "30000", "--max-num-batched-tokens", "50000", "--max-num-seqs", "30"),
    *("--no-enable-prefix-caching", "--trust-remote-code", "--dtype", "bfloat16"),
)
INTERNVL2_2B = (
    *("OpenGVLab/InternVL2-2B", "--trust-remote-code", "--dtype", "bfloat16"),
    *("--max-model-len", "32768", "--enforce-eager"),
)
INTERNVL3_8B = (
    *("OpenGVLab/InternVL3-8B", "--dtype", "bfloat16", "--max-model-len", "8192"),
    *("--limit-mm-per-prompt", '{"image":4}', "--trust-remote-code"),
)
