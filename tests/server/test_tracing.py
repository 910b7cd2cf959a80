"""Spans of a real server, as a real collector gets them."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.served import question, served
from tilewise.errors import InvalidConfig
from tilewise.server.tracing import Stage, Tracing, stages
from tilewise.timing import EngineMoments, InputTiming, Timing

VERBS = ["prepare", "submit", "plan", "launch", "commit", "deliver"]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def timing(**changes: Any) -> Timing:
    given: dict[str, Any] = {
        "arrival": 10.0,
        "first_token": 15.0,
        "finished": 17.0,
        "inputs": InputTiming(download=1.0, decode=0.5, preprocess=0.5),
        "engine": EngineMoments(queued=12.5, scheduled=13.0, first_token=15.0),
    }
    return Timing(**given | changes)


def test_the_verbs_follow_each_other_without_gaps():
    assert list(stages(timing(), 17.25)) == [
        Stage("prepare", 10.0, 12.0),
        Stage("submit", 12.0, 12.5),
        Stage("plan", 12.5, 13.0),
        Stage("launch", 13.0, 15.0),
        Stage("commit", 15.0, 17.0),
        Stage("deliver", 17.0, 17.25),
    ]


def test_what_was_given_up_ends_where_it_was():
    assert list(stages(timing(finished=None), 16.0))[-2:] == [
        Stage("commit", 15.0, 16.0),
        Stage("deliver", 16.0, 16.0),
    ]
    assert list(stages(timing(finished=None, first_token=None, engine=None), 16.0)) == [Stage("prepare", 10.0, 12.0)]


def test_no_verb_begins_before_the_one_before_it_ends():
    """Media of a request may be prepared side by side one day: more seconds of work than have passed."""
    found = list(stages(timing(inputs=InputTiming(download=9.0)), 17.25))
    assert [stage.stop for stage in found[:-1]] == [stage.start for stage in found[1:]]
    assert all(stage.start <= stage.stop for stage in found)


def test_a_missing_library_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'tilewise\[otel\]'"):
        Tracing("http://127.0.0.1:4318/v1/traces", "demo")


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Where to send spans, and the decoded requests that came."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received: list[Any] = []

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receive) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", received
        finally:
            server.shutdown()


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": question(text, "small_print.png"), **more}


@pytest.fixture(scope="module")
def spans() -> list[Any]:
    """Of a server's life: a chat with a traceparent, one not to be traced, a completion, a chat left, one refused."""
    with (
        collector() as (endpoint, received),
        served("--otlp-traces-endpoint", endpoint, "--served-model-name", "eye") as server,
        httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client,
    ):
        asked = body("What is printed in small letters?", temperature=0)
        traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        answer = client.post("/chat/completions", json=asked, headers=traced).raise_for_status().json()
        assert answer["choices"][0]["message"]["content"] == "hour"
        unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        client.post("/chat/completions", json=asked, headers=unsampled).raise_for_status()
        client.post("/completions", json={"prompt": ["a", "b"], "max_tokens": 3}).raise_for_status()
        endless = body("What is printed?", ignore_eos=True, stream=True, seed=7, temperature=0.25)
        with client.stream("POST", "/chat/completions", json=endless) as stream:
            assert next(stream.iter_lines()).startswith("data: ")
        assert client.post("/chat/completions", json={"messages": []}).status_code == 400
    resources = [part for request in received for part in request.resource_spans]
    assert {value.value.string_value for part in resources for value in part.resource.attributes
            if value.key == "service.name"} == {"tilewise"}  # fmt: skip
    return [span for part in resources for scope in part.scope_spans for span in scope.spans]


def attributes_of(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def requests_of(spans: list[Any]) -> list[Any]:
    return sorted((span for span in spans if span.name == "request"), key=lambda span: span.start_time_unix_nano)


def children(spans: list[Any], whole: Any) -> list[Any]:
    return [span for span in spans if span.parent_span_id == whole.span_id]


def test_every_request_is_a_span_with_six_verbs_inside(spans):
    wholes = requests_of(spans)
    assert len(wholes) == 4, (
        "a chat, two prompts of one completion, and a chat that was left; nothing refused or unsampled"
    )
    for whole in wholes:
        inside = children(spans, whole)
        assert [span.name for span in inside] == VERBS
        assert inside[0].start_time_unix_nano == whole.start_time_unix_nano
        assert inside[-1].end_time_unix_nano == whole.end_time_unix_nano
        for before, after in itertools.pairwise(inside):
            assert before.end_time_unix_nano == after.start_time_unix_nano
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in inside)
        assert {span.trace_id for span in inside} == {whole.trace_id}


def test_the_callers_trace_goes_on(spans):
    first, *others = requests_of(spans)
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert all(span.trace_id.hex() != TRACE and not span.parent_span_id for span in others)


def test_attributes_are_those_of_the_request(spans):
    about = attributes_of(requests_of(spans)[0])
    assert about["gen_ai.response.model"] == "eye"
    assert about["gen_ai.usage.output_tokens"] == 2
    assert about["tilewise.tiles"] == 13
    assert about["tilewise.image_tokens"] == 13 * 16
    assert about["gen_ai.usage.input_tokens"] > 13 * 16
    assert about["tilewise.encode.seconds"] > 0
    assert about["gen_ai.response.finish_reasons"].values[0].string_value == "stop"
    prepare = attributes_of(children(spans, requests_of(spans)[0])[0])
    assert prepare["tilewise.decode.seconds"] > 0, "a picture's file was decoded"
    assert prepare["tilewise.preprocess.seconds"] > 0


def test_one_that_was_left_says_so(spans):
    *whole, left = requests_of(spans)
    assert {span.status.code for span in whole} == {0}
    assert left.status.code == 2
    assert "before its answers were whole" in left.status.message
    assert attributes_of(left)["gen_ai.request.temperature"] == 0.25
