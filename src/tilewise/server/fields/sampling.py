"""Fields that chat and text completions share: how tokens are chosen, and what is reported of them."""

from __future__ import annotations

from tilewise.server.fields.dialects import DIALECTS
from tilewise.server.fields.field import Field, inert, refused, works

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

SAMPLING: tuple[Field, ...] = (
    works("model", "One of the served names; absent = the first of them."),
    works("frequency_penalty", "From -2 to 2."),
    works("presence_penalty", "From -2 to 2."),
    works("repetition_penalty", "Above 0; 1 = off."),
    works("logit_bias", "Token ids to numbers in [-100, 100]."),
    works("max_tokens", "Most tokens of an answer; absent = what the context leaves (16 for text completions)."),
    works("min_tokens", "No end and no stop string counts before."),
    works("n", "Answers to one prompt."),
    works("seed", "The same seed gives the same answer."),
    works("stop", "One text or several that end an answer."),
    works("stop_token_ids", "Token ids that end an answer."),
    works("include_stop_str_in_output", "Whether the stop string is part of the answer."),
    works("ignore_eos", "Go on behind the model's own end."),
    works("stream", "Answer as server-sent events."),
    works("stream_options", "include_usage, continuous_usage_stats."),
    works("temperature", "0 = greedy."),
    works("top_p", "In (0, 1]."),
    works("top_k", "0 or -1 = all tokens."),
    works("min_p", "In [0, 1]."),
    works("bad_words", "Texts that are not generated."),
    works("allowed_token_ids", "Only these tokens are generated."),
    works("skip_special_tokens", "Whether control tokens of the answer stay hidden."),
    works("logprob_token_ids", "Log-probabilities of these tokens, in place of the likeliest; needs logprobs."),
    works("prompt_logprobs", "Log-probabilities of the prompt's tokens; not with stream."),
    works("truncate_prompt_tokens", "Keep the last tokens of a prompt without pictures; -1 = as many as fit."),
    works("response_format", "text, json_object, json_schema, structural_tag or regex_schema."),
    works("structured_outputs", "json, regex, choice, grammar, json_object or structural_tag, and options of JSON."),
    works("guided_json", "Old name of structured_outputs.json."),
    works("guided_regex", "Old name of structured_outputs.regex."),
    works("guided_choice", "Old name of structured_outputs.choice."),
    works("guided_grammar", "Old name of structured_outputs.grammar."),
    works(
        "guided_whitespace_pattern", "White space of guided_json: old name of structured_outputs.whitespace_pattern."
    ),
    works("structural_tag", "Old name of structured_outputs.structural_tag."),
    works("priority", "Lower is served first, under --scheduling-policy priority."),
    works("cache_salt", "Cached prefixes are shared among requests of one salt alone."),
    works("request_id", "Ends the id of the answer, unless the header X-Request-Id does."),
    works("return_token_ids", "Token ids of prompt and answers."),
    works("return_tokens_as_token_ids", "Tokens of log-probabilities are written token_id:N."),
    works("mm_processor_kwargs", "max_dynamic_patch and its like, for this request's pictures."),
    works("truncation_side", "left = truncate_prompt_tokens keeps the end of a prompt, right = its beginning."),
    refused("media_io_kwargs", "Only video.num_frames and video.fps can be set, in chat."),
    *PROVIDER,
    *DIALECTS,
)


def without(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.name not in names)
