"""The fields of /v1/chat/completions."""

from __future__ import annotations

from tilewise.server.fields.dialects import OF_MEDIA
from tilewise.server.fields.field import FieldTable, inert, refused, works
from tilewise.server.fields.sampling import SAMPLING, without

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
