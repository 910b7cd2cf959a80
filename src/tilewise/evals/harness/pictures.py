"""PictureModel: lm_eval's `tilewise-vlm`, which answers and scores with pictures as well.

`<image>` says where each picture stands, in order. Pictures beyond `max_images` are left out with their markers, and
counted. Requests without pictures are those of TextModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from tilewise.errors import InvalidRequest
from tilewise.evals.harness.dialogue import Dialogue
from tilewise.evals.harness.generation import sampling_of
from tilewise.evals.harness.text import SCORE, TextModel, place
from tilewise.evals.question import Question


class PictureModel(TextModel):
    """Takes what TextModel takes; `max_images` is how many pictures a request may keep."""

    MULTIMODAL = True

    def generation(self, request: Any) -> Question:
        pictures = pictures_of(request)
        if not pictures or isinstance(request.args[0], Dialogue):
            return super().generation(request).about(pictures)
        sampling = sampling_of(request.args[1], self._longest, self.seed)
        return Question(*place(request), request.args[0], sampling, pictures)

    def score(self, request: Any) -> Question:
        pictures = pictures_of(request)
        if not pictures or isinstance(request.args[0], Dialogue):
            return super().score(request).about(pictures)
        context, continuation = request.args[:2]
        tokenizer = self.llm.inputs.tokenizer
        scored = len(tokenizer.encode_raw(context + continuation)) - len(tokenizer.encode_raw(context))
        return Question(*place(request), context + continuation, SCORE, pictures, scored=scored)


def pictures_of(request: Any) -> tuple[Image.Image, ...]:
    """Of a request's last part; a task without pictures has none."""
    visual = request.args[2].get("visual") if len(request.args) > 2 else None
    pictures: Sequence[Any] = [] if visual is None else visual if isinstance(visual, (list, tuple)) else [visual]
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            task, row = place(request)
            raise InvalidRequest(f"{task}, row {row}: a picture must be a PIL image, got {type(picture).__name__}.")
    return tuple(pictures)
