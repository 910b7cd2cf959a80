"""docs/monitoring.md and the dashboard name exactly what a server has; whole expressions, not names alone."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from docs.dashboard import DASHBOARD, text
from docs.metrics import PAGE, families, table, table_in
from prometheus_client.parser import text_string_to_metric_families

from tests.served import question

_NAME = re.compile(r"(?:vllm|tilewise):\w+")
_USE = re.compile(r"(\w+)\(((?:vllm|tilewise):\w+)")
_LABEL = re.compile(r"(\w+)=~")


@pytest.fixture(scope="module")
def samples(demo_url) -> dict[str, tuple[str, frozenset[str]]]:
    """Name of a sample -> kind of its metric, and its labels, as a real server that has answered gives them."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    httpx.post(f"{demo_url}/v1/chat/completions", json=body).raise_for_status()
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{demo_url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = (family.type, frozenset(sample.labels))
    # Kept by reason and by place, and this server has rejected nothing and guessed at nothing.
    for family in families():
        for sample in family.samples:
            found.setdefault(sample.name, (family.type, frozenset(sample.labels)))
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str, str]]:
    return [(panel["title"], item["legendFormat"], item["expr"]) for panel in panels() for item in panel["targets"]]


def test_the_dashboard_is_that_of_its_panels():
    assert DASHBOARD.read_text(encoding="utf-8") == text(), "make monitoring writes it"


def test_the_table_is_that_of_the_code():
    assert table_in(PAGE.read_text(encoding="utf-8")) == table(), "make monitoring writes it"


def test_the_table_has_every_metric_of_a_server(demo_url):
    named = set(re.findall(r"^\| `(\S+)` \| (\w+) \|", table(), re.MULTILINE))
    real = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for family in text_string_to_metric_families(httpx.get(f"{demo_url}/metrics").text)
    }
    assert real == named


@pytest.mark.parametrize(("title", "legend", "query"), queries())
def test_a_query_is_one_that_prometheus_can_answer(samples, title, legend, query):
    used = _USE.findall(query)
    assert [name for _, name in used] == _NAME.findall(query), "each metric stands in a function"
    for function, name in used:
        kind, labels = samples[name]
        counts = kind == "counter" or name.endswith(("_bucket", "_sum", "_count"))
        assert (function in ("rate", "increase")) == counts, f"{function} of a {kind}"
        if "histogram_quantile" in query:
            assert (kind, name.endswith("_bucket")) == ("histogram", True)
            assert "by (le)" in query
        grouped = set(re.findall(r"by \((\w+)\)", query)) | set(re.findall(r"{{(\w+)}}", legend))
        assert grouped <= labels
    assert set(_LABEL.findall(query)) == {"model_name", "instance"}, "the choices at the top hold for all"
    for opening, closing in ("()", "{}", "[]"):
        assert query.count(opening) == query.count(closing)


def test_panels_do_not_lie_upon_each_other():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_a_server_says_what_media_took(demo_url):
    """Pixels of a file are decoded before the engine sees them: that is in the metrics of the inputs."""

    def seconds() -> float:
        text = httpx.get(f"{demo_url}/metrics").text
        found = re.search(r"^vllm:mm_media_decode_latency_seconds_sum\S* (\S+)$", text, re.MULTILINE)
        assert found
        return float(found[1])

    before = seconds()
    body = {"messages": question("What is the word?", "reading_text.png"), "max_tokens": 2}
    httpx.post(f"{demo_url}/v1/chat/completions", json=body).raise_for_status()
    assert seconds() > before
