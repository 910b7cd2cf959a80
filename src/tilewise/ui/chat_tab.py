"""ChatTab: the components of the chat, and what happens when they are used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from tilewise.chat_server import ServerProblem
from tilewise.errors import TilewiseError
from tilewise.outputs.boxes import read_boxes
from tilewise.ui.bubbles import LATEX, bubbles, exchange_at
from tilewise.ui.conversation import VIDEO_SUFFIXES, ChatConversation, ChatSettings, Exchange, is_video
from tilewise.ui.export import as_curl, as_llm, as_markdown, as_openai
from tilewise.ui.figures import box_figure, tile_figures, time_strip
from tilewise.ui.servers import ServedCard, Servers
from tilewise.ui.thumbnails import thumbnail_of

PICTURES = Path(__file__).parent.parent / "demo" / "pictures"
"""Pictures of the examples."""
MOST_BYTES = 50 * 2**20
"""Largest file that a question may have; the server has limits of its own."""
FILE_TYPES = ["image", ".heic", ".avif", *VIDEO_SUFFIXES]


def build_settings(words: Any) -> list[Any]:
    """Return the components of the settings, in the order in which `read_settings` takes their values."""
    return [
        gr.Textbox(label=words("system"), info=words("system_note"), lines=2, elem_id="system"),
        gr.Slider(1, 40, 12, step=1, label=words("tiles"), info=words("tiles_note"), elem_id="tiles"),
        gr.Radio(["auto", "low", "high"], value="auto", label=words("detail"), info=words("detail_note")),
        gr.Checkbox(label=words("thinking")),
        gr.Slider(0, 2, 0, step=0.05, label=words("temperature")),
        gr.Slider(0.05, 1, 1, step=0.05, label=words("top_p")),
        gr.Number(1024, label=words("max_tokens"), precision=0, minimum=1),
        gr.Number(None, label=words("seed"), precision=0),
    ]


def read_settings(card: ServedCard, values: Sequence[Any]) -> ChatSettings:
    system, tiles, detail, thinking, temperature, top_p, longest, seed = values
    return ChatSettings(
        card.model, system or "", float(temperature), float(top_p), int(longest) if longest else None,
        None if seed is None else int(seed), int(tiles), detail, bool(thinking), card.ours,
    )  # fmt: skip


class ChatTab:
    """A conversation with one model, and beside it what the model sees."""

    def __init__(
        self, servers: Servers, words: Any, model: gr.Dropdown, key: gr.Textbox, examples: Sequence[Any]
    ) -> None:
        """Build the tab; `model` and `key` are the page's: the model that is asked, and the key of its server."""
        self._servers, self._model, self._key = servers, model, key
        self.conversation = gr.State(ChatConversation())
        self.kept = gr.BrowserState([], storage_key="tilewise.conversation", secret="tilewise")
        with gr.Row(elem_id="chat-row"):
            with gr.Column(scale=3, min_width=320):
                self._build_talk(words, examples)
            with gr.Column(scale=2, min_width=300):
                self._build_side(words)
        self._connect()

    def _build_talk(self, words: Any, examples: Sequence[Any]) -> None:
        self.bubbles = gr.Chatbot(
            elem_id="talk", height="62vh", show_label=False, editable="user", latex_delimiters=LATEX, allow_tags=False,
            buttons=["copy", "copy_all"], placeholder="## Tilewise", group_consecutive_messages=False,
            examples=[{"text": text, "files": files} for text, files in examples], label="ChatConversation",
        )  # fmt: skip
        self.box = gr.MultimodalTextbox(
            elem_id="ask", show_label=False, placeholder=words("ask"), file_count="multiple", file_types=FILE_TYPES,
            sources=["upload"], autofocus=True, max_lines=8, label="Question",
        )  # fmt: skip
        with gr.Row():
            self.new = gr.Button(words("new"), size="sm", elem_id="new")
        with gr.Accordion(words("camera"), open=False):
            self.camera = gr.Image(sources=["webcam"], type="filepath", show_label=False, height=260)
        with gr.Accordion(words("sketch"), open=False):
            self.sketch = gr.Sketchpad(
                type="pil", show_label=False, canvas_size=(448, 448), fixed_canvas=True, image_mode="RGB",
                brush=gr.Brush(default_size=14, colors=["#000000", "#dc1e23", "#1e963c", "#1e50d2", "#f5cd14"]),
                layers=False,
            )  # fmt: skip
            self.use_sketch = gr.Button(words("use"), size="sm", elem_id="use-sketch")

    def _build_side(self, words: Any) -> None:
        self.boxes = gr.HTML(label=words("found"), show_label=True, visible=False, container=True, elem_id="boxes")
        self.grid = gr.HTML(label=words("seen"), show_label=True, visible=False, container=True, elem_id="grid")
        self.strip = gr.HTML(label=words("took"), show_label=True, visible=False, container=True, elem_id="strip")
        with gr.Accordion(words("settings"), open=False, elem_id="settings"):
            self.settings = build_settings(words)
        with gr.Accordion(words("export"), open=False, elem_id="export"):
            self.markdown = gr.DownloadButton(words("markdown"), size="sm")
            self.codes = []
            languages: list[tuple[str, Any]] = [("curl", "shell"), ("openai", "python"), ("LLM", "python")]
            for name, language in languages:
                with gr.Tab(name):
                    self.codes.append(gr.Code(language=language, show_label=False, lines=8, max_lines=24))

    @property
    def inputs(self) -> list[Any]:
        """Components whose values handlers take."""
        return [self.conversation, self._model, self._key, *self.settings]

    @property
    def shown(self) -> list[Any]:
        """Components that a handler of the conversation fills anew."""
        return [self.conversation, self.bubbles, self.box, self.grid, self.boxes, self.strip, self.kept]

    def _connect(self) -> None:
        inputs, shown = self.inputs, self.shown
        runs: list[Any] = [
            self.box.submit(self.send, [self.box, *inputs], shown),
            self.bubbles.retry(self.retry, inputs, shown),
            self.bubbles.edit(self.edit, inputs, shown),
            self.bubbles.example_select(self.example, inputs, shown),
        ]
        for run in runs:
            run.then(self.codes_of, inputs, [self.markdown, *self.codes], show_progress="hidden")
        self.box.stop(self.stopped, self.conversation, [self.box, self.kept], cancels=runs)
        self.bubbles.undo(self.undo, inputs, shown)
        gr.on([self.new.click, self.bubbles.clear], self.begin, None, shown, cancels=runs)
        cut = [self._model, *self.settings[1:3]]
        looks = [self.box.change, *(part.change for part in cut)]
        gr.on(looks, self.look, [self.box, self.conversation, *cut], self.grid, show_progress="hidden")
        self.camera.change(add_file, [self.box, self.camera], self.box)
        self.use_sketch.click(add_sketch, [self.box, self.sketch], self.box)

    def send(self, asked: dict[str, Any], conversation: ChatConversation, *settings: Any) -> Iterator[list[Any]]:
        """Ask what stands in the box."""
        files, text = [str(file) for file in asked["files"]], asked["text"].strip()
        wrong = next(filter(None, map(problem_of, files)), None)
        if wrong or not (text or files):
            gr.Warning(wrong or "Write a question first.")
            yield [gr.skip()] * 7
            return
        conversation.ask(text, files)
        yield from self._answer(conversation, settings)

    def retry(self, event: gr.RetryData, conversation: ChatConversation, *settings: Any) -> Iterator[list[Any]]:
        conversation.again(exchange_at(conversation, event.index))
        yield from self._answer(conversation, settings)

    def edit(self, event: gr.EditData, conversation: ChatConversation, *settings: Any) -> Iterator[list[Any]]:
        conversation.again(exchange_at(conversation, event.index), str(event.value))
        yield from self._answer(conversation, settings)

    def example(self, event: gr.SelectData, conversation: ChatConversation, *settings: Any) -> Iterator[list[Any]]:
        chosen = event.value
        conversation.ask(chosen["text"], [file["path"] for file in chosen.get("files") or ()])
        yield from self._answer(conversation, settings)

    def undo(self, event: gr.UndoData, conversation: ChatConversation, *settings: Any) -> list[Any]:
        """Take the last question back into the box."""
        number = exchange_at(conversation, event.index)
        old = conversation.exchanges[number]
        del conversation.exchanges[number:]
        return self._shown(conversation, settings, {"text": old.question, "files": list(old.files)})

    def begin(self) -> list[Any]:
        return [ChatConversation(), [], ready_box(empty=True), *map(panel, ("", "", "")), []]

    def stopped(self, conversation: ChatConversation) -> list[Any]:
        return [ready_box(), conversation.as_data()]

    def reopen(self, kept: Any, begun: ChatConversation, *settings: Any) -> list[Any]:
        """Show the conversation that this browser had when the page was closed or loaded again."""
        conversation = ChatConversation.from_data(kept, (Path(get_upload_folder()), PICTURES))
        if begun.exchanges or not conversation.exchanges:
            return [gr.skip()] * 7
        return self._shown(conversation, settings)

    def look(
        self, asked: dict[str, Any] | None, conversation: ChatConversation, label: str | None, tiles: int, detail: str
    ) -> Any:
        """Draw the tiles of the pictures in the box; with none there, of the last question's, as the server told."""
        last = conversation.exchanges[-1] if conversation.exchanges else Exchange("")
        files = (asked or {}).get("files")
        cached = [] if files else last.cached
        try:
            card = self._servers.card(label)
        except ServerProblem:
            return panel("")
        tiling = card.tiling_of(int(tiles), detail)
        return panel(tile_figures(files or last.files, tiling, card.tokens_per_tile, cached))

    def codes_of(self, conversation: ChatConversation, label: str | None, key: Any, *values: Any) -> list[Any]:
        """Write the conversation down as a file, and as programs."""
        if not conversation.exchanges:
            return [gr.skip()] * 4
        card = self._servers.card(label or next(iter(self._servers.choices(key)), None))
        settings = read_settings(card, values)
        file = Path(tempfile.mkdtemp()) / "conversation.md"
        file.write_text(as_markdown(conversation), "utf-8")
        return [str(file), as_curl(conversation, settings, card.url), as_openai(conversation, settings, card.url),
                as_llm(conversation, settings, card.root or card.model)]  # fmt: skip

    def _answer(self, conversation: ChatConversation, settings: Sequence[Any]) -> Iterator[list[Any]]:
        """Stream the answer to the last question; a problem becomes a sentence of the conversation."""
        label, key, *values = settings
        exchange = conversation.exchanges[-1]
        yield self._shown(conversation, settings, busy=True)
        try:
            card = self._servers.card(label or next(iter(self._servers.choices(key)), None))
            body = conversation.body(read_settings(card, values))
            with self._servers.open(card, key) as server, closing(server.answer(body)) as deltas:
                for delta in deltas:
                    exchange.take(delta)
                    yield [conversation, bubbles(conversation), *[gr.skip()] * 5]
            if not (exchange.answer or exchange.reasoning):
                exchange.problem = "The model answered nothing: ask in other words, or attach a picture."
            elif exchange.finish_reason is None:
                exchange.problem = "The server ended in the middle of the answer: ask again."
        except (TilewiseError, OSError) as error:
            exchange.problem = str(error)
        yield self._shown(conversation, settings)

    def _shown(
        self, conversation: ChatConversation, settings: Sequence[Any], left: Any = None, busy: bool = False
    ) -> list[Any]:
        last = conversation.exchanges[-1] if conversation.exchanges else None
        box = gr.MultimodalTextbox(value=left or {"text": "", "files": []}, submit_btn=not busy, stop_btn=busy)
        grid = self.look(left, conversation, settings[0], *settings[3:5])
        strip = panel(time_strip(last) if last else "")
        return [conversation, bubbles(conversation), box, grid, panel(found_boxes(last)), strip, conversation.as_data()]


def panel(content: str) -> Any:
    """Return an HTML component's content; one without any is not shown."""
    return gr.HTML(content, visible=bool(content))


def found_boxes(exchange: Exchange | None) -> str:
    """Return a figure of the boxes in an answer, over the last picture of its question; empty without boxes."""
    boxes = read_boxes(exchange.answer) if exchange else []
    return box_figure(exchange.pictures[-1], boxes) if exchange and boxes and exchange.pictures else ""


def ready_box(empty: bool = False) -> Any:
    if not empty:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
    return gr.MultimodalTextbox({"text": "", "files": []}, submit_btn=True, stop_btn=False)


def problem_of(file: str) -> str | None:
    """Return a sentence on what is wrong with a file of a question; None if nothing is."""
    path = Path(file)
    size = path.stat().st_size
    if size > MOST_BYTES:
        return f"{path.name} has {size / 2**20:.0f} MB, the limit is {MOST_BYTES >> 20} MB: send a smaller one."
    if is_video(file):
        return None
    try:
        thumbnail_of(file)
    except TilewiseError as error:
        return str(error)
    return None


def add_file(asked: dict[str, Any] | None, file: str | None) -> Any:
    """Add a picture of the camera to the question."""
    if file is None:
        return gr.skip()
    asked = asked or {"text": "", "files": []}
    return {"text": asked["text"], "files": [*asked["files"], file]}


def add_sketch(asked: dict[str, Any] | None, drawn: dict[str, Any] | None) -> Any:
    """Add what was drawn to the question, as a PNG on white."""
    picture = (drawn or {}).get("composite")
    if picture is None:
        return gr.skip()
    file = Path(tempfile.mkdtemp()) / "drawing.png"
    picture.convert("RGB").save(file)
    return add_file(asked, str(file))
