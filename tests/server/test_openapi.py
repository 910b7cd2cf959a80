"""The OpenAPI document: it names what works, and its examples are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from tests.served import Served
from tests.server.live import QUESTION
from tilewise.errors import InvalidRequest
from tilewise.ignored import Ignored
from tilewise.inputs.messages import parse_messages
from tilewise.server.assemble import ROUTERS
from tilewise.server.bodies import BODIES, BatchedChatBody
from tilewise.server.body import Body, UnknownFields, fields_of
from tilewise.server.messages import RequestRules
from tilewise.server.openapi import api_routes, document, pages

DOCUMENT = document(ROUTERS)


def schema(name: str) -> dict[str, Any]:
    """With the others beside it, for the references in it."""
    return {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}


def named(reference: dict[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def fits(kind: dict[str, Any], value: Any) -> None:
    Draft202012Validator({**kind, "components": DOCUMENT["components"]}).validate(value)


def posts() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        if "requestBody" in methods.get("post", {}):
            yield path, methods["post"]


def examples() -> Iterator[Any]:
    for path, operation in posts():
        for name, example in operation["requestBody"]["content"]["application/json"]["examples"].items():
            yield pytest.param(path, example["value"], id=f"{path} {name}")


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_is_in_it():
    told = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert told == {(route.path_format, method) for route in api_routes(ROUTERS) for method in route.methods or ()}
    bodies = {kind.route for kind in (*BODIES, BatchedChatBody)}
    assert {path for path, _ in posts()} == {*bodies, "/invocations"}


def test_every_name_of_an_operation_is_its_own():
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))


def test_every_reference_leads_somewhere():
    for reference in references(DOCUMENT):
        value = DOCUMENT
        for key in reference.removeprefix("#/").split("/"):
            value = value[key]


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.route)
def test_a_body_has_its_fields(kind: type[Body]):
    operation = dict(posts())[kind.route]
    name = named(operation["requestBody"]["content"]["application/json"]["schema"])
    properties = DOCUMENT["components"]["schemas"][name]["properties"]
    assert list(properties) == [field.name for field in fields_of(kind).values() if field.effect != "refused"]
    for field in fields_of(kind).values():
        if field.effect == "works":
            assert properties[field.name]["description"] == field.note
            assert len(properties[field.name]) > 1, f"{field.name} has no type"
        elif field.effect == "no effect":
            assert properties[field.name]["description"].startswith("No effect: ")


def test_a_null_is_a_field_that_is_not_there():
    body = {"messages": [{"role": "user", "content": "a"}], "stream": None, "seed": None, "tools": None}
    Draft202012Validator(schema("ChatBody")).validate(body)


URL = {"url": "https://example.org/a.png"}


@pytest.mark.parametrize(
    ("part", "fits"),
    [
        ("a", True),
        ({"text": "a", "type": None}, True),
        ({"type": "", "text": "a"}, False),
        ({"type": "image_url", "image_url": URL, "uuid": "a"}, True),
        ({"type": "image_url", "image_url": {**URL, "uuid": "a"}}, True),
        ({"type": "image_url", "uuid": "a"}, True),
        ({"video_url": None, "uuid": "a"}, True),
        ({"type": "input_image", "image_url": URL["url"], "detail": None}, True),
        ({"type": "image_url", "image_url": URL, "uuid": ""}, False),
        ({"type": "image_url", "image_url": URL, "uuid": "a" * 257}, False),
        ({"type": "video_url", "video_url": {**URL, "uuid": 1}}, False),
        ({"uuid": "a"}, False),
    ],
)
def test_a_part_fits_the_document_just_when_it_is_read(part: Any, fits: bool):
    message = {"role": "user", "content": [part]}
    for name, field in (("ChatBody", "messages"), ("TokenizeBody", "messages"), ("ResponsesBody", "input")):
        assert Draft202012Validator(schema(name)).is_valid({field: [message]}) is fits, name
    try:
        parse_messages([message], RequestRules(UnknownFields(Ignored())))
    except InvalidRequest:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mm_processor_kwargs", {"max_dynamic_patch": 129}),
        ("mm_processor_kwargs", {"max_patches": 1}),
        ("media_io_kwargs", {"video": {"fps": 0}}),
        ("media_io_kwargs", {"image": {"rgba_background_color": [0, 0, 256]}}),
    ],
)
def test_what_breaks_the_document_is_refused(live: Served, field: str, value: Any):
    body = {"messages": [QUESTION], "max_tokens": 2}
    assert not Draft202012Validator(schema("ChatBody")).is_valid({**body, field: value})
    assert live.client.post("/v1/chat/completions", json={**body, field: value}).status_code == 400


def test_without_keys_nothing_asks_for_one():
    assert "securitySchemes" not in DOCUMENT["components"]
    assert "401" not in json.dumps(list(DOCUMENT["components"]["responses"]))


@pytest.mark.parametrize(("path", "body"), list(examples()))
def test_an_example_is_answered_as_described(live: Served, path: str, body: dict[str, Any]):
    operation = dict(posts())[path]
    content = operation["responses"]["200"]["content"]
    fits(operation["requestBody"]["content"]["application/json"]["schema"], body)
    answer = live.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        fits(content["application/json"]["schema"], answer.json())
        return
    kinds = content["text/event-stream"]["itemSchema"]["properties"]["data"]["anyOf"][0]["contentSchema"]["anyOf"]
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    shown = [json.loads(event) for event in events if event != "[DONE]"]
    assert len(shown) >= 2
    for event in shown:
        fits({"anyOf": [kind for kind in kinds if named(kind) != "ErrorBody"]}, event)


def test_what_an_answer_has_beside_is_described_too(live: Served):
    """Everything that a body may ask to be told."""
    asked = {"max_tokens": 3, "return_token_ids": True, "prompt_logprobs": 1, "n": 2}
    for path, body, name in (
        ("/v1/chat/completions", {"messages": [QUESTION], "logprobs": True, "top_logprobs": 2}, "ChatCompletion"),
        ("/v1/completions", {"prompt": "a", "logprobs": 2, "echo": True}, "TextCompletion"),
    ):
        answer = live.client.post(path, json={**body, **asked})
        assert answer.status_code == 200, answer.text
        Draft202012Validator(schema(name)).validate(answer.json())


def test_the_served_document_is_this_one(live: Served):
    assert live.client.get("/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


def test_the_document_is_made_once_when_it_is_asked_for():
    made = []
    app = FastAPI(openapi_url=None)
    app.include_router(pages(lambda: made.append(1) or {"openapi": "3.2.0"}))
    assert not made
    client = TestClient(app)
    assert [client.get("/openapi.json").json() for _ in range(2)] == [{"openapi": "3.2.0"}] * 2
    assert made == [1]


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/models", "ModelList"), ("/version", "Version"), ("/load", "Load"), ("/nothing", "ErrorBody")],
)
def test_what_is_asked_without_a_body(live: Served, path: str, name: str):
    Draft202012Validator(schema(name)).validate(live.client.get(path).json())
