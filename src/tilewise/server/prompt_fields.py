"""Fields that several request bodies share: how messages become a prompt, and how pictures are cut."""

from __future__ import annotations

from typing import Any, Literal

from tilewise.server.body import Body, Field, refused, works


class PictureFields(Body):
    mm_processor_kwargs: dict[str, Any] | None = works("max_dynamic_patch and its like, for this request's pictures.")


class TilingFields(PictureFields):
    """The fields that say how pictures are cut into tiles."""

    max_dynamic_patch: int | None = works("The same as mm_processor_kwargs.max_dynamic_patch.")
    min_dynamic_patch: int | None = works("The same as mm_processor_kwargs.min_dynamic_patch.")


class PromptFields(PictureFields):
    chat_template_kwargs: dict[str, Any] | None = works(
        "enable_thinking; whatever else has no effect on the built-in templates."
    )
    media_io_kwargs: dict[str, Any] | None = works("video.num_frames and video.fps; image.rgba_background_color.")


class ConversationFields(PromptFields, TilingFields):
    """The fields that say how messages become a prompt."""

    add_generation_prompt: bool | None = works("false = the prompt ends with the last message.")
    continue_final_message: bool = works("Go on with the last message, in place of a new turn.", False)
    interleave_mm_strings: bool | None = works("true = pictures and texts keep their order; -hf models always keep it.")
    enable_thinking: bool | None = works("The same as chat_template_kwargs.enable_thinking.")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
SUCCEEDED = (
    refused("functions", "Its successor is tools.", []),
    refused("function_call", "Its successor is tool_choice.", "auto", "none"),
)
"""Fields of OpenAI's API that have other names by now."""


def without(fields: tuple[Field, ...], *names: str) -> tuple[Field, ...]:
    return tuple(field for field in fields if field.name not in names)
