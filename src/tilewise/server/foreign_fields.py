"""Fields of other servers that clients send here as well: each has its successor, or no effect."""

from __future__ import annotations

from tilewise.server.body import Field, all_inert, all_refused, inert, refused

SYSTEM = "Put it into a message of role system."
_SAMPLER = "Tokens are chosen by temperature, top_p, top_k, min_p and the penalties: leave it out."
_OF_SAMPLER = "It belongs to a way of sampling that is off."
_SLOT = "Cached prefixes are found by content here, and nothing is pinned to a slot."
_REPORT = "The usage and the metrics say what there is to say."
_PIXELS = "Pictures are cut into tiles of one size: set max_dynamic_patch."
_APART = "Prompts and answers are computed in one place."

PROVIDER: tuple[Field, ...] = (
    inert("user", "A name for the provider's own records; nothing is recorded here."),
    inert("metadata", "Labels for stored answers; none is stored here.", {}),
    inert("safety_identifier", "A name for the provider's own records; nothing is recorded here."),
    inert("prompt_cache_key", "A routing hint; cached prefixes are found by content here."),
    inert("prompt_cache_options", "A hint to a provider's cache, which here keeps what fits."),
    inert("prompt_cache_retention", "A hint to a provider's cache, which here keeps what fits."),
    inert("store", "Answers of this route are not kept.", False),
    inert("service_tier", "There is one tier.", "auto", "default", "standard_only"),
)
"""Fields for whoever runs a service for others."""

VLLM: tuple[Field, ...] = (
    refused("use_beam_search", "Beams are searched offline, by LLM.beam_search; use n with a temperature here.", False),
    inert("length_penalty", "It belongs to beam search, which is off here.", 1),
    inert("early_stopping", "It belongs to beam search, which is off here.", False),
    refused("beam_width", "Beams are searched offline, by LLM.beam_search.", 1),
    refused("best_of", "Ask for n answers and choose among them.", 1),
    inert("spaces_between_special_tokens", "Text comes as the tokens spell it.", True),
    refused("thinking_token_budget", "Thinking has no budget of its own: set max_tokens."),
    refused("repetition_detection", "Use repetition_penalty or frequency_penalty."),
    inert("guided_decoding_backend", "There is one backend.", "auto"),
    refused("logits_processors", "Code of callers is not run: use logit_bias, bad_words or structured_outputs.", []),
    refused("kv_transfer_params", f"{_APART} Keys and values are not sent between servers.", {}),
    refused("ec_transfer_params", f"{_APART} Embeddings of tiles are not sent between servers.", {}),
    refused("vllm_xargs", "It is for plugins of another server.", {}),
    refused("return_prompt_text", "/tokenize shows what a conversation becomes.", False),
    refused("return_token_offsets", "Offsets are not counted; token texts come with logprobs.", False),
    refused("return_weight_versions", "Weights have no versions here.", False),
    refused("routed_experts_prompt_start", "Which experts computed a token is not reported."),
    refused("mm_payload", f"{_APART} Send pictures as image_url."),
    refused("return_mm_kwargs", f"{_APART} What pictures became is not reported.", False),
    inert("stream_interval", "The server's --stream-interval says how many tokens a chunk waits for."),
    inert("session_id", "Cached prefixes are found by content here."),
    refused("watermarking", "Answers are not marked: leave it out.", False),
    refused("prompt_embeds", "Prompts are text or token ids here.", []),
    refused("lora_request", "Adapters are not served: name the model itself."),
)
SGLANG: tuple[Field, ...] = (
    refused("regex", "Its name here is structured_outputs.regex."),
    refused("ebnf", "Its name here is structured_outputs.grammar."),
    refused("max_new_tokens", "Its name here is max_tokens."),
    refused("min_new_tokens", "Its name here is min_tokens.", 0),
    refused("stop_regex", "Texts end answers, patterns do not: use stop, or structured_outputs.regex.", []),
    refused("no_stop_trim", "Its name here is include_stop_str_in_output.", False),
    refused("separate_reasoning", "The server's --reasoning-parser says it.", True),
    inert("stream_reasoning", "Reasoning is streamed as it comes.", True),
    inert("rid", "Its name here is request_id."),
    refused("lora_path", "Adapters are not served: name the model itself."),
    refused("return_hidden_states", "Hidden states are not reported.", False),
    refused("return_routed_experts", "Which experts computed a token is not reported.", False),
    refused("custom_logit_processor", "Code of callers is not run: use logit_bias, bad_words or structured_outputs."),
    inert("custom_params", "They are for processors of callers, which are not run."),
    inert("return_cached_tokens_details", _REPORT, False),
    *all_inert(_APART, "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    refused("min_pixels", _PIXELS),
    refused("max_pixels", _PIXELS),
)
LMDEPLOY: tuple[Field, ...] = (
    refused("do_preprocess", "The model's template is always applied: send a raw prompt to /v1/completions.", True),
    refused("adapter_name", "Adapters are not served: name the model itself."),
    refused("random_seed", "Its name here is seed."),
)
LLAMA_CPP: tuple[Field, ...] = (
    refused("n_predict", "Its name here is max_tokens.", -1),
    refused("json_schema", "Its name here is structured_outputs.json."),
    refused("grammar", "Its name here is structured_outputs.grammar.", ""),
    refused("repeat_penalty", "Its name here is repetition_penalty.", 1),
    inert("repeat_last_n", "repetition_penalty looks at prompt and answer as a whole."),
    refused("samplers", _SAMPLER),
    *all_refused(_SAMPLER, mirostat=0, typical_p=1, tfs_z=1, top_a=0, top_n_sigma=-1),
    *all_refused(_SAMPLER, dynatemp_range=0, xtc_probability=0, dry_multiplier=0),
    *all_inert(_OF_SAMPLER, "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold"),
    *all_inert(_OF_SAMPLER, "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    refused("n_probs", "Ask for logprobs.", 0),
    refused("n_keep", "What does not fit is refused, not cut: set truncate_prompt_tokens.", 0, -1),
    inert("id_slot", _SLOT, -1),
    inert("cache_prompt", _SLOT, True),
    inert("n_cache_reuse", _SLOT, 0),
    inert("min_keep", "top_p, min_p and top_k always leave one token.", 0),
    inert("timings_per_token", _REPORT, False),
    inert("return_progress", _REPORT, False),
    inert("response_fields", _REPORT),
    refused("return_tokens", "Its name here is return_token_ids.", False),
    refused("post_sampling_probs", "Log-probabilities are those before sampling.", False),
    refused("reasoning_format", "The server's --reasoning-parser says it.", "auto"),
    refused("parse_tool_calls", "The server's --tool-call-parser says it.", True),
    refused("lora", "Adapters are not served: name the model itself.", []),
    refused("image_data", "Send pictures as image_url, in messages.", []),
    refused("t_max_predict_ms", "The server's --request-timeout says how long a request may take.", 0, -1),
)
OTHERS: tuple[Field, ...] = (
    refused("do_sample", "temperature 0 is greedy.", True),
    refused("num_beams", "Beams are searched offline, by LLM.beam_search.", 1),
    refused("no_repeat_ngram_size", "Use repetition_penalty or frequency_penalty.", 0),
    refused("min_length", "Its name here is min_tokens.", 0),
    refused("max_length", "Set max_tokens, which counts the answer alone."),
    refused("top_p_min", "top_p does not decay: set top_p."),
    refused("top_p_decay", "top_p does not decay: set top_p."),
    *all_refused(_SAMPLER, epsilon_cutoff=0, eta_cutoff=0, smoothing_factor=0),
    refused("ban_eos_token", "Its name here is ignore_eos.", False),
    refused("system", SYSTEM, "", []),
    refused("extra_body", "It is a keyword of OpenAI's Python client: what is in it goes beside the other fields.", {}),
    refused("extra_args", "It is for plugins of another server.", {}),
)
_BESIDE = "No such object is read: what is in it goes beside the other fields, by the names that it has here."
_FORM = "Its name here is response_format, of type json_schema."
_THINKING = "Its name here is chat_template_kwargs.enable_thinking."
OTHER_NAMES: tuple[Field, ...] = (
    refused("system_prompt", SYSTEM, "", []),
    refused("systemInstruction", SYSTEM, "", {}),
    refused("system_instruction", SYSTEM, "", {}),
    refused("prefill", "Send its text as a last message, of role assistant, with prefix true.", ""),
    *all_refused("Its name here is stop.", stop_sequences=[], stop_words=[], stop_words_list=[]),
    refused("bad_words_list", "Its name here is bad_words.", []),
    refused("format", _FORM, "", {}),
    refused("response_schema", _FORM, {}),
    refused("json_mode", "Its name here is response_format, of type json_object.", False),
    refused("guided_json_object", "Its name here is response_format, of type json_object.", False),
    refused("guided_decoding", "Its name here is structured_outputs.", {}),
    refused("disable_any_whitespace", "Put it into structured_outputs.", False),
    refused("whitespace_pattern", "Put it into structured_outputs."),
    *all_refused(_BESIDE, options={}, generationConfig={}, generation_config={}, sampling_params={}, parameters={}),
    refused("temp", "Its name here is temperature."),
    refused("greedy", "Set temperature to 0.", False),
    refused("num_return_sequences", "Its name here is n.", 1),
    refused("max_tokens_to_sample", "Its name here is max_tokens."),
    refused("thinking", _THINKING),
    refused("thinking_budget", "Thinking has no budget of its own: set max_tokens."),
    refused("template", "The model's own template is applied: leave it out.", ""),
    refused("context", "Token ids of earlier turns are not taken: send the whole conversation.", []),
)
"""Names that other APIs and engines have for what has another name, or another place, here."""
_FRAMES = "Put it into media_io_kwargs, as video.{}."
PICTURES = ("multi_modal_data", "mm_data", "images", "image", "attachments", "file_ids")
"""Fields for pictures beside the conversation."""
OF_MEDIA: tuple[Field, ...] = (
    *(refused(name, "Send pictures as image_url, in messages.", [], {}) for name in PICTURES),
    refused("num_frames", _FRAMES.format("num_frames")),
    refused("nframes", _FRAMES.format("num_frames")),
    refused("fps", _FRAMES.format("fps")),
    refused("dynamic_image_size", "Put it into mm_processor_kwargs.", True),
)
"""Options of pictures and videos, where conversations are sent."""
DIALECTS = (*VLLM, *SGLANG, *LMDEPLOY, *LLAMA_CPP, *OTHERS, *OTHER_NAMES)
