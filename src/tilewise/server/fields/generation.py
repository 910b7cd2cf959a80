"""The fields of chat and text completions, of /v1/encode, /tokenize and /detokenize."""

from __future__ import annotations

from tilewise.server.fields.dialects import DIALECTS, OF_MEDIA
from tilewise.server.fields.field import Field, FieldTable, inert, refused, works

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


CHAT = FieldTable(
    "/v1/chat/completions",
    (
        works("messages", "The conversation; see the parts of a message."),
        works("max_completion_tokens", "The newer name of max_tokens."),
        works("logprobs", "Whether log-probabilities are reported."),
        works("top_logprobs", "Likeliest tokens at each position; needs logprobs. -1 = all."),
        works("tools", "Functions that the model may call."),
        works("tool_choice", "none, auto, required or one function; absent = auto when there are tools."),
        works("parallel_tool_calls", "false = at most one call an answer."),
        works(
            "reasoning_effort", "none or minimal = no thinking, any other = think first, if the model was trained to."
        ),
        works("include_reasoning", "false = the reasoning is left out of the answer."),
        works("enable_thinking", "The same as chat_template_kwargs.enable_thinking."),
        works("chat_template_kwargs", "enable_thinking; whatever else has no effect on the built-in templates."),
        works("echo", "Begin the answer with the last message, if that is the assistant's."),
        works("add_generation_prompt", "false = the prompt ends with the last message."),
        works("continue_final_message", "Go on with the last message; needs add_generation_prompt false."),
        works("max_dynamic_patch", "The same as mm_processor_kwargs.max_dynamic_patch."),
        works("min_dynamic_patch", "The same as mm_processor_kwargs.min_dynamic_patch."),
        works("interleave_mm_strings", "true = pictures and texts keep their order; -hf models always keep it."),
        works("media_io_kwargs", "video.num_frames and video.fps; image.rgba_background_color."),
        works("add_special_tokens", "true has no effect; refused where the model has a start token: it stands there."),
        refused("documents", "The models have no place for documents: put them into a message.", []),
        refused("chat_template", "Prompts follow the built-in template that the model was trained with."),
        refused("prompt", "It belongs to /v1/completions: send messages."),
        refused("input", "It belongs to /v1/responses: send messages."),
        refused("instructions", "Put them into a message of role system."),
        refused("max_output_tokens", "Its name here is max_tokens."),
        refused("functions", "Its successor is tools.", []),
        refused("function_call", "Its successor is tool_choice.", "auto", "none"),
        refused("modalities", "Answers are text.", ["text"]),
        refused("audio", "Answers are text."),
        inert("prediction", "It makes some providers faster; --speculative-config does so here."),
        refused("web_search_options", "The server looks nothing up: leave it out."),
        refused("verbosity", "Say in a message how long the answer should be.", "medium"),
        refused("text", "Its name here is response_format, for text.format.", {}, {"format": {"type": "text"}}),
        refused("reasoning", "Its name here is reasoning_effort, for reasoning.effort.", {}),
        refused("suffix", "The models continue texts, they do not fill gaps.", ""),
        *OF_MEDIA,
        *without(SAMPLING, "media_io_kwargs"),
    ),
)


_OF_PICTURES = (
    *("mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch"),
    *(field.name for field in OF_MEDIA),
)
_PREFIX = "Put it at the beginning of the prompt."
_OWN = (
    refused("prefill", "Put it at the end of the prompt.", ""),
    *(refused(name, _PREFIX, "", [], {}) for name in ("system", "system_prompt", "systemInstruction")),
    refused("system_instruction", _PREFIX, "", {}),
    refused("thinking", "A prompt is continued as it is: use /v1/chat/completions."),
    refused("template", "A prompt is continued as it is: leave it out.", ""),
    refused("context", "Put the earlier turns into the prompt.", []),
)
_CHAT_ONLY = "It belongs to /v1/chat/completions: a prompt is continued as it is."

COMPLETION = FieldTable(
    "/v1/completions",
    (
        works("prompt", "A text, token ids, or a list of either."),
        works("max_completion_tokens", "The newer name of max_tokens."),
        works("logprobs", "Log-probabilities of this many likeliest tokens at each position."),
        works("echo", "Begin the answer with the prompt; with max_tokens 0 nothing else is answered."),
        works("add_special_tokens", "Whether a text gets the tokenizer's start token."),
        refused("messages", "They belong to /v1/chat/completions: send a prompt."),
        refused("input", "It belongs to /v1/responses: send a prompt."),
        refused("max_output_tokens", "Its name here is max_tokens."),
        refused("suffix", "The models continue texts, they do not fill gaps.", ""),
        refused("tools", _CHAT_ONLY, []),
        refused("tool_choice", _CHAT_ONLY, "none", "auto"),
        refused("functions", _CHAT_ONLY, []),
        refused("function_call", _CHAT_ONLY, "none", "auto"),
        refused("chat_template", _CHAT_ONLY),
        refused("documents", _CHAT_ONLY, []),
        refused("instructions", _PREFIX, ""),
        refused("text", "A text to continue is the prompt; the form of an answer is response_format.", {}),
        refused("top_logprobs", "Its name here is logprobs, a number.", 0),
        *_OWN,
        *without(SAMPLING, *_OF_PICTURES, *(field.name for field in _OWN)),
        *(
            refused(name, "Text completions take no pictures: use /v1/chat/completions.", {}, [])
            for name in _OF_PICTURES
        ),
    ),
)


_CHAT_FIELDS_OF_ENCODE = ("mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch")

ENCODE = FieldTable(
    "/v1/encode",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("input", "A picture or a list of them: each a URL, or a part of type image_url as messages have it."),
        works("encoding_format", "base64, in which files of tensors come; absent = the same."),
        *(field for field in CHAT.fields if field.name in _CHAT_FIELDS_OF_ENCODE),
        refused("dimensions", "Rows have the width of the model's: leave it out."),
        refused("messages", "Send the pictures as input: what is asked about them is for `tilewise serve`."),
        inert("user", "nothing is kept of who asks"),
    ),
)


_CHAT_FIELDS_OF_TOKENIZE = (
    *("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
    *("media_io_kwargs", "mm_processor_kwargs", "max_dynamic_patch", "min_dynamic_patch"),
    *("interleave_mm_strings", "enable_thinking"),
)

TOKENIZE = FieldTable(
    "/tokenize",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("prompt", "A text; either this or messages."),
        works("add_special_tokens", "Whether a text gets the tokenizer's start token; messages have their own."),
        works("return_token_strs", "The tokens as the vocabulary spells them, too."),
        refused("return_offsets", "Offsets are not counted.", False),
        *(field for field in CHAT.fields if field.name in _CHAT_FIELDS_OF_TOKENIZE),
    ),
)
DETOKENIZE = FieldTable(
    "/detokenize",
    (
        works("model", "One of the served names; absent = the first of them."),
        works("tokens", "Token ids."),
    ),
)
