"""VLMEvalKit (`ms-vlmeval`): its wrappers for LMDeploy and for OpenAI's API, as its harness calls them.

The package imports every model and data set that it knows, with torch and torchvision, before its wrappers: only they,
what they read pictures with and what they are derived from are imported here.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(importlib.util.find_spec("vlmeval").origin).parent
for name in ("vlmeval", "vlmeval.api", "vlmeval.api.adapters"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(FOLDER.joinpath(*name.split(".")[1:]))]
sys.modules["vlmeval.api.adapters"].build_adapter = None  # prompts of other models, for named benchmarks

from vlmeval.api.gpt import OpenAIWrapper  # noqa: E402
from vlmeval.api.lmdeploy import LMDeployWrapper  # noqa: E402


@pytest.fixture
def lmdeploy(url):
    def wrapper(**options):
        return LMDeployWrapper("demo", api_base=f"{url}/chat/completions", retry=1, max_tokens=20, **options)

    return wrapper


@pytest.fixture
def asked(sign):
    return [{"type": "image", "value": str(sign)}, {"type": "text", "value": "What is the word?"}]


@pytest.mark.parametrize("options", [{}, {"local_media": True}, {"system_prompt": "You read signs."}, {"top_k": 1}])
def test_lmdeploy(lmdeploy, asked, options):
    assert lmdeploy(**options).generate(asked) == "cat"


def test_lmdeploy_with_fields_of_a_picture(lmdeploy, sign, tmp_path):
    """What an item has beside its type and value goes along in `image_url`, as LMDeploy reads it there."""
    large = tmp_path / "large.png"
    Image.open(sign).convert("RGB").resize((1600, 1200)).save(large)
    tokens = {}
    for most in (None, 1):
        more = {} if most is None else {"max_dynamic_patch": most}
        asked = [{"type": "image", "value": str(large), **more}, {"type": "text", "value": "What is the word?"}]
        code, answer, response = lmdeploy().generate_inner(asked, max_tokens=20, temperature=0)
        assert (code, bool(answer)) == (0, True)
        tokens[most] = response.json()["usage"]["prompt_tokens"]
    assert tokens[1] == 43 < tokens[None]


def test_lmdeploy_in_a_conversation(lmdeploy, asked):
    answer = {"role": "assistant", "content": [{"type": "text", "value": "cat"}]}
    follow = {"role": "user", "content": [{"type": "text", "value": "And what color is the word?"}]}
    assert lmdeploy().chat([{"role": "user", "content": asked}, answer, follow]) == "red"


@pytest.mark.parametrize("detail", ["low", "high"])
@pytest.mark.parametrize("system", [None, "You read signs."])
def test_openai(url, asked, detail, system):
    wrapper = OpenAIWrapper(
        "demo",
        api_base=f"{url}/chat/completions",
        key="none",
        retry=1,
        max_tokens=20,
        img_detail=detail,
        system_prompt=system,
    )
    assert wrapper.generate(asked) == "cat"
