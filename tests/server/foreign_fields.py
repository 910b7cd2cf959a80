"""Fields of request bodies of other servers, each with a row in our tables."""

VLLM = {
    "0.33.0": {
        "/v1/chat/completions": """
            messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
            presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
            reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search
            top_k min_p repetition_penalty watermarking length_penalty stop_token_ids include_stop_str_in_output
            ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
            truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words echo
            add_generation_prompt continue_final_message add_special_tokens documents chat_template
            chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority request_id
            session_id return_tokens_as_token_ids return_token_ids return_weight_versions
            routed_experts_prompt_start return_token_offsets return_prompt_text mm_payload return_mm_kwargs
            cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval
        """,
        "/v1/completions": """
            model prompt echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop
            stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty
            watermarking length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
            skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side
            allowed_token_ids prompt_logprobs logprob_token_ids bad_words prompt_embeds add_special_tokens
            response_format structured_outputs priority request_id session_id return_tokens_as_token_ids
            return_token_ids return_weight_versions routed_experts_prompt_start return_token_offsets mm_payload
            return_mm_kwargs cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection
            thinking_token_budget stream_interval
        """,
        "/v1/responses": """
            background include input instructions max_output_tokens max_tool_calls metadata model logit_bias
            parallel_tool_calls previous_response_id prompt reasoning include_reasoning service_tier store
            stream temperature text tool_choice tools top_logprobs top_p top_k min_p truncation user
            skip_special_tokens spaces_between_special_tokens include_stop_str_in_output presence_penalty
            frequency_penalty prompt_cache_key prompt_cache_options prompt_cache_retention safety_identifier
            watermarking request_id session_id media_io_kwargs mm_processor_kwargs priority mm_payload
            return_mm_kwargs cache_salt enable_response_messages previous_input_messages structured_outputs
            repetition_penalty seed stop stop_token_ids ignore_eos vllm_xargs kv_transfer_params
            ec_transfer_params chat_template_kwargs
        """,
        "/tokenize": """
            model prompt add_special_tokens return_token_strs messages add_generation_prompt
            continue_final_message chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs tools
        """,
    },
    "0.10.0": {
        "/v1/chat/completions": """
            messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
            presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
            parallel_tool_calls user best_of use_beam_search top_k min_p repetition_penalty length_penalty
            stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
            spaces_between_special_tokens truncate_prompt_tokens prompt_logprobs allowed_token_ids bad_words
            echo add_generation_prompt continue_final_message add_special_tokens documents chat_template
            chat_template_kwargs mm_processor_kwargs guided_json guided_regex guided_choice guided_grammar
            structural_tag guided_decoding_backend guided_whitespace_pattern priority request_id
            logits_processors return_tokens_as_token_ids cache_salt kv_transfer_params vllm_xargs
        """,
        "/v1/completions": """
            model prompt prompt_embeds best_of echo frequency_penalty logit_bias logprobs max_tokens n
            presence_penalty seed stop stream stream_options suffix temperature top_p user use_beam_search top_k
            min_p repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos
            min_tokens skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens
            allowed_token_ids prompt_logprobs add_special_tokens response_format guided_json guided_regex
            guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern priority
            logits_processors return_tokens_as_token_ids cache_salt kv_transfer_params vllm_xargs
        """,
        "/v1/responses": """
            background include input instructions max_output_tokens max_tool_calls metadata model
            parallel_tool_calls previous_response_id prompt reasoning service_tier store stream temperature text
            tool_choice tools top_logprobs top_p truncation user request_id mm_processor_kwargs priority
            cache_salt
        """,
    },
}
"""Fields of the request models in the released packages, by version and route; private names are left out."""
OTHERS = {
    "OpenAI": """
        messages model audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
        max_tokens metadata modalities n parallel_tool_calls prediction presence_penalty prompt_cache_key
        prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
        stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
    """,
    "SGLang": """
        regex ebnf stop_regex no_stop_trim separate_reasoning stream_reasoning rid lora_path return_hidden_states
        custom_logit_processor custom_params max_dynamic_patch min_dynamic_patch bootstrap_host bootstrap_port
        bootstrap_room priority continue_final_message chat_template_kwargs skip_special_tokens
    """,
    "LMDeploy": """
        do_preprocess session_id ignore_eos skip_special_tokens top_k repetition_penalty min_new_tokens min_p
        enable_thinking chat_template_kwargs mm_processor_kwargs media_io_kwargs return_token_ids
        include_stop_str_in_output spaces_between_special_tokens
    """,
    "llama.cpp": """
        n_predict json_schema grammar repeat_penalty repeat_last_n mirostat mirostat_tau mirostat_eta typical_p
        dynatemp_range dynatemp_exponent xtc_probability xtc_threshold dry_multiplier dry_base dry_allowed_length
        dry_penalty_last_n dry_sequence_breakers samplers n_probs n_keep id_slot cache_prompt min_keep
        timings_per_token return_progress response_fields return_tokens post_sampling_probs reasoning_format
        parse_tool_calls lora image_data t_max_predict_ms ignore_eos
    """,
}
"""Fields of chat bodies, from the documentation of each."""
