"""lm_eval's models `tilewise` and `tilewise-vlm`: engines that answer and score, without and with pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.model import LM
from PIL import Image

from tilewise.config import EngineConfig
from tilewise.entrypoints.llm import LLM
from tilewise.environment import Environment
from tilewise.errors import InvalidConfig, InvalidRequest
from tilewise.evals.client import AnswerStore, EvalClient, identity
from tilewise.evals.prompts import (
    Dialogue,
    before_everything,
    behind_messages,
    behind_reasoning,
    behind_text,
    raw_ids,
    sampling_of,
    windows,
)
from tilewise.evals.question import ModelAnswer, Question
from tilewise.sampling_params import SamplingParams
from tilewise.types import TokenIds

logger = logging.getLogger("tilewise")
Answer = TypeVar("Answer", str, tuple[float, bool])

SCORE = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
EVERY_PICTURE = 999
"""Number that lm_eval's models write where there is no limit."""


class TextModel(LM):  # type: ignore[misc]
    """lm_eval's model `tilewise`: an engine that completes texts, answers conversations and scores continuations.

    Its `model_args` are `pretrained`, options of the engine, and the other parameters of `__init__`. `resume_dir` keeps
    answers, so that a run that was ended goes on; `enable_thinking` lets the model reason first, and takes the
    reasoning out of its answers.
    """

    MULTIMODAL = False

    def __init__(
        self,
        pretrained: str = "demo",
        *,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        max_images: int = EVERY_PICTURE,
        enable_thinking: bool = False,
        resume_dir: str | Path | None = None,
        seed: int = 1234,
        device: str | None = None,
        **engine: Any,
    ) -> None:
        super().__init__()
        if device is not None:  # lm_eval's command line always names one
            logger.info("device=%s has no effect: the engine computes where its platform is", device)
        config = EngineConfig.of(Environment.here(), model=pretrained, **engine)
        running = config.max_num_seqs * config.data_parallel_size
        batch = running if str(batch_size).startswith("auto") else int(batch_size)
        self.llm = LLM(pretrained, **engine)
        self.name, self.seed, self.thinking, self._longest = pretrained, seed, enable_thinking, max_gen_toks
        self.max_length = self.llm.resolved.limits.max_model_len
        store = AnswerStore(Path(resume_dir), identity(config, self.max_length)) if resume_dir else None
        self.client = EvalClient(self.llm, min(batch, max_batch_size or batch), max_images, store)

    @property
    def tokenizer_name(self) -> str:
        return f"{self.name}__{self.llm.inputs.spec.template.name}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the name of the model's built-in template. Raises InvalidConfig if another one is asked for."""
        name = self.llm.inputs.spec.template.name
        if isinstance(chat_template, str) and chat_template != name:
            raise InvalidConfig(f"apply_chat_template={chat_template!r}: the template of {self.name} is {name}.")
        return name

    def apply_chat_template(self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True) -> Dialogue:
        return Dialogue.of(chat_history, self.llm.inputs.spec.template, add_generation_prompt, self.thinking)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return self._answers("generate_until", requests, self.generation, self._text)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._answers("loglikelihood", requests, self.score, _scored)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        rows = [self.rolling(request) for request in requests]
        answers = iter(self.client.ask([question for row in rows for question in row], lambda place, answer: None))
        return [sum(_scored(next(answers))[0] for _ in row) for row in rows]

    def generation(self, request: Any) -> Question:
        """Return the question that asks for an answer in words."""
        context, words = request.args[:2]
        sampling = sampling_of(words, self._longest, self.seed)
        if isinstance(context, Dialogue):
            asked, ending = context.messages, context.ending
            return Question(*place(request), asked, sampling, ending=ending, thinking=self.thinking)
        room = self.max_length - (sampling.max_tokens or 1)
        ids = raw_ids(self.llm.inputs, context) or (before_everything(self.llm.inputs),)
        return Question(*place(request), self._cut(ids, room), sampling)

    def score(self, request: Any) -> Question:
        """Return the question that asks for the likelihood of a continuation."""
        context, continuation = request.args[:2]
        if isinstance(context, Dialogue):
            said = context.followed_by(continuation)
            scored = behind_messages(self.llm.inputs, context.followed_by(""), said)
            return Question(*place(request), said, SCORE, ending="continue", thinking=self.thinking, scored=scored)
        ids, scored = behind_text(self.llm.inputs, context, continuation)
        kept = self._cut(ids, self.max_length - 1)
        return Question(*place(request), kept, SCORE, scored=min(scored, len(kept) - 1))

    def rolling(self, request: Any) -> list[Question]:
        """Return the questions that ask for the likelihood of a whole text, one for each part of it."""
        (text,) = request.args[:1]
        ids, before = tuple(self.llm.inputs.tokenizer.encode_raw(text)), before_everything(self.llm.inputs)
        parts = windows(ids, before, self.max_length - 1)
        return [Question(*place(request), prompt, SCORE, scored=scored) for prompt, scored in parts]

    def get_model_info(self) -> dict[str, Any]:
        """Return the counts of the run, which lm_eval puts into the results' `config`."""
        return {"tilewise": self.client.counts.as_json()}

    def close(self) -> None:
        if self.client.store:
            self.client.store.close()
        self.llm.close()

    def _answers(
        self,
        kind: str,
        requests: Sequence[Any],
        question: Callable[[Any], Question],
        read: Callable[[ModelAnswer], Answer],
    ) -> list[Answer]:
        def on_answer(place: int, answer: ModelAnswer) -> None:
            if answer.problem is None:
                self.cache_hook.add_partial(kind, requests[place].args, read(answer))

        return [read(answer) for answer in self.client.ask(map(question, requests), on_answer)]

    def _cut(self, ids: TokenIds, room: int) -> TokenIds:
        self.client.counts.prompts_cut += len(ids) > max(1, room)
        return ids[-max(1, room) :]

    def _text(self, answer: ModelAnswer) -> str:
        return behind_reasoning(answer.text) if self.thinking else answer.text


def place(request: Any) -> tuple[str, int | None]:
    """Return task and row of a request."""
    return request.task_name or request.request_type, request.doc_id


def _scored(answer: ModelAnswer) -> tuple[float, bool]:
    """Return (log-likelihood, greedy); a failed question is the least likely, an empty continuation certain."""
    if answer.problem is not None:
        return -math.inf, False
    return (0.0, True) if answer.logprob is None else (answer.logprob, bool(answer.greedy))


class PictureModel(TextModel):
    """lm_eval's model `tilewise-vlm`: takes what TextModel takes; `max_images` is how many pictures a request may keep.

    `<image>` says where each picture stands, in order. Pictures beyond `max_images` are left out with their markers,
    and counted. Requests without pictures are handled as TextModel does.
    """

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
    """Return the pictures of a request, which lm_eval keeps in its last part. Raises InvalidRequest."""
    visual = request.args[2].get("visual") if len(request.args) > 2 else None
    pictures: Sequence[Any] = [] if visual is None else visual if isinstance(visual, (list, tuple)) else [visual]
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            task, row = place(request)
            raise InvalidRequest(f"{task}, row {row}: a picture must be a PIL image, got {type(picture).__name__}.")
    return tuple(pictures)
