"""llama.cpp, by the functions that its Python binding names: one context with a sequence a stream, as its server does.

A picture's keys and values stay in its sequence; the next prompt goes on behind the chunks that are the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from benchmarks.peers.peer import Answer, Lacks, Peer, Setup, file_of, run
from benchmarks.peers.work import Prompt
from llama_cpp import mtmd_cpp
from PIL import Image

BATCH = 2048
TOKENS_PER_TILE = 256
COMPUTES = {
    "float32": "float32 weights; keys and values float16",
    "bfloat16": "bfloat16 weights, widened to float32 in the dot products where the CPU has none of its own; "
    "keys and values float16",
    "int8": "q8_0: int8 weights and activations with a scale for 32 values; keys and values float16",
}
Chunk = tuple[Any, Any]
"""A part of a prompt, and what it is recognised by."""


@dataclass(frozen=True, slots=True)
class Row:
    """A token at a place of a sequence; `wanted` if the token behind it is."""

    token: int
    place: int
    sequence: int
    wanted: bool = True


class LlamaCpp(Peer):
    def __init__(self, setup: Setup) -> None:
        text, tower = file_of(setup, "text.gguf"), file_of(setup, "mmproj.gguf")
        self._precision = setup.precision
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(text), llama_cpp.llama_model_default_params())
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._context = llama_cpp.llama_init_from_model(self._model, _context_params(setup))
        self._memory = llama_cpp.llama_get_memory(self._context)
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.print_timings, params.warmup = False, setup.threads, False, False
        self._media = mtmd_cpp.mtmd_init_from_file(os.fsencode(tower), self._model, params)
        if not (self._context and self._media):
            raise Lacks("its files could not be loaded")
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._kept: list[list[tuple[Any, int]]] = [[] for _ in range(setup.streams)]

    def about(self) -> dict[str, str]:
        system = llama_cpp.llama_print_system_info().decode().strip(" |")
        return {
            "version": f"llama.cpp in llama-cpp-python {llama_cpp.__version__}",
            "computes": COMPUTES[self._precision],
            "built with": system,
        }

    def answer(self, prompts: Sequence[Prompt], tokens: int) -> Answer:
        started = time.perf_counter()
        ends, chosen = self._read(prompts)
        first = time.perf_counter() - started
        prompt_tokens = ends[0]
        for step in range(tokens - 1):
            rows = [
                Row(token, end + step, number) for number, (token, end) in enumerate(zip(chosen, ends, strict=True))
            ]
            chosen = self._run(rows)
        return Answer(first, time.perf_counter() - started, prompt_tokens)

    def tile(self) -> float:
        pixels = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
        with self._chunks(Prompt("", Image.fromarray(pixels))) as chunks:
            picture = next(chunk for chunk, key in chunks if isinstance(key, bytes))
            started = time.perf_counter()
            mtmd_cpp.mtmd_encode_chunk(self._media, picture)
            return time.perf_counter() - started

    def preprocess(self, photos: Sequence[bytes]) -> int:
        tiles = 0
        for photo in photos:
            buffer = (ctypes.c_uint8 * len(photo)).from_buffer_copy(photo)
            bitmap = mtmd_cpp.mtmd_helper_bitmap_init_from_buf(self._media, buffer, len(photo), False)
            with self._cut(Prompt("").chat("") + mtmd_cpp.mtmd_default_marker().decode(), bitmap) as chunks:
                tiles += sum(mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk) for chunk, _ in chunks) // TOKENS_PER_TILE
        return tiles

    def _read(self, prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
        """Length and first token of each. Texts share batches; pictures come one after the other."""
        if any(prompt.picture for prompt in prompts):
            read = [self._read_picture(number, prompt) for number, prompt in enumerate(prompts)]
            return [end for end, _ in read], [token for _, token in read]
        texts = [self._tokens(prompt) for prompt in prompts]
        rows = [
            Row(token, place, number, wanted=place + 1 == len(text))
            for number, text in enumerate(texts)
            for place, token in enumerate(text)
        ]
        for number in range(len(prompts)):
            self._forget(number, 0)
        chosen: list[int] = []
        for start in range(0, len(rows), BATCH):
            chosen += self._run(rows[start : start + BATCH])
        return [len(text) for text in texts], chosen

    def _read_picture(self, number: int, prompt: Prompt) -> tuple[int, int]:
        with self._chunks(prompt) as chunks:
            known = self._known(number, [key for _, key in chunks[:-1]])
            place = ctypes.c_int32(known[-1][1] if known else 0)
            self._forget(number, place.value)
            for index, (chunk, key) in enumerate(chunks[len(known) :], len(known)):
                arguments = (place.value, number, BATCH, index == len(chunks) - 1, ctypes.byref(place))
                if mtmd_cpp.mtmd_helper_eval_chunk_single(self._media, self._context, chunk, *arguments):
                    raise RuntimeError(f"chunk {index} of the prompt was not computed")
                known.append((key, place.value))
            self._kept[number] = known
        return place.value, self._choose(-1)

    def _known(self, number: int, keys: list[Any]) -> list[tuple[Any, int]]:
        """The chunks at the beginning that the sequence still has; each with where it ends."""
        kept = self._kept[number]
        same = 0
        while same < min(len(kept), len(keys)) and kept[same][0] == keys[same]:
            same += 1
        return kept[:same]

    def _forget(self, number: int, place: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, number, place, -1)
        self._kept[number] = []

    def _run(self, rows: list[Row]) -> list[int]:
        """Compute a batch; returns the tokens behind those rows that want one."""
        batch = self._batch
        for index, row in enumerate(rows):
            batch.token[index], batch.pos[index] = row.token, row.place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row.sequence
            batch.logits[index] = row.wanted
        batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("a batch was not computed")
        return [self._choose(index) for index, row in enumerate(rows) if row.wanted]

    def _choose(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _tokens(self, prompt: Prompt) -> list[int]:
        with self._chunks(prompt) as chunks:
            return [token for _, key in chunks for token in key]

    @contextmanager
    def _chunks(self, prompt: Prompt) -> Iterator[list[Chunk]]:
        text = prompt.chat(mtmd_cpp.mtmd_default_marker().decode())
        with self._cut(text, _bitmap(prompt.picture) if prompt.picture else None) as chunks:
            yield chunks

    @contextmanager
    def _cut(self, text: str, bitmap: Any) -> Iterator[list[Chunk]]:
        """A prompt's chunks of text and pictures, while they are needed."""
        encoded = text.encode()
        asked = mtmd_cpp.mtmd_input_text(encoded, len(encoded), False, True)
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        found = mtmd_cpp.mtmd_input_chunks_init()
        count = 1 if bitmap else 0
        try:
            if mtmd_cpp.mtmd_tokenize(self._media, found, ctypes.byref(asked), bitmaps, count):
                raise RuntimeError("a prompt could not be cut")
            number = mtmd_cpp.mtmd_input_chunks_size(found)
            parts = (mtmd_cpp.mtmd_input_chunks_get(found, index) for index in range(number))
            yield [(part, _key(part)) for part in parts]
        finally:
            mtmd_cpp.mtmd_input_chunks_free(found)
            if bitmap:
                mtmd_cpp.mtmd_bitmap_free(bitmap)


def _context_params(setup: Setup) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = setup.streams * setup.context, setup.streams
    params.n_batch, params.n_outputs_max = BATCH, 0
    params.n_threads = params.n_threads_batch = setup.threads
    return params


def _bitmap(picture: Image.Image) -> Any:
    pixels = picture.tobytes()
    buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
    bitmap = mtmd_cpp.mtmd_bitmap_init(picture.width, picture.height, buffer)
    mtmd_cpp.mtmd_bitmap_set_id(bitmap, hashlib.blake2b(pixels, digest_size=16).hexdigest().encode())
    return bitmap


def _key(chunk: Any) -> tuple[int, ...] | bytes:
    """The tokens of a text; the name of the picture that a chunk belongs to."""
    if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT:
        count = ctypes.c_size_t()
        tokens = mtmd_cpp.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return tuple(tokens[: count.value])
    return mtmd_cpp.mtmd_input_chunk_get_id(chunk) or b""


if __name__ == "__main__":
    run(LlamaCpp)
