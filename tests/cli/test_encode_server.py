"""The flags of `tilewise encode-server`: those of `serve` that mean something where pictures are encoded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.tiny import TWINS, write_original
from tilewise.cli import main
from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.settings import Settings, serve_flags, values_of_line
from tilewise.cli.serve import ENCODE_SERVER, encode_flags, encode_settings
from tilewise.errors import InvalidConfig
from tilewise.inputs.model_inputs import ModelInputs


def read_encode_settings(words: Sequence[str], environment: dict[str, str]) -> Settings:
    return encode_settings(values_of_line(ENCODE_SERVER.read(words)), environment)


def test_flags_are_those_of_serve():
    assert {flag.name for flag in encode_flags()} == {flag.name for flag in serve_flags()}
    settings = read_encode_settings(
        ["./model", "--port", "8100", "--encoder-cache-dir", "/tmp/tiles", "--api-key", "a", "b", "-q", "int8"], {}
    )
    engine, server = settings.engine, settings.server
    assert (engine.model, engine.encoder_cache_dir, engine.quantization) == ("./model", "/tmp/tiles", "int8")
    assert (server.port, server.api_key) == (8100, ("a", "b"))
    assert engine.enable_mm_embeds
    assert "enable_mm_embeds" not in settings.given


@pytest.mark.parametrize(
    "words", ["--max-model-len 5", "-tp 2", "--kv-cache-dtype int8", "--enforce-eager", "--reasoning-parser qwen3"]
)
def test_flags_without_meaning_are_refused_by_name(words, capsys):
    with pytest.raises(BadUsage, match="for `tilewise serve` alone"):
        read_encode_settings(words.split(), {})
    assert main(["encode-server", *words.split()]) == 2
    assert "for `tilewise serve` alone" in capsys.readouterr().err


def test_a_file_of_flags(tmp_path):
    file = tmp_path / "flags.yml"
    file.write_text("port: 8100\nencoder-cache-gb: 0.5\n")
    settings = read_encode_settings(["--config", str(file)], {})
    assert (settings.server.port, settings.engine.encoder_cache_gb) == (8100, 0.5)
    file.write_text("max-model-len: 5\n")
    with pytest.raises(BadUsage, match="--max-model-len: for `tilewise serve` alone"):
        read_encode_settings(["--config", str(file)], {})


def test_unknown_flags_and_help(capsys):
    with pytest.raises(BadUsage, match="Did you mean --encoder-cache-dir"):
        read_encode_settings(["--encoder-cache-dirr", "a"], {})
    assert main(["encode-server", "--help=memory"]) == 0
    shown = capsys.readouterr().out
    assert "--encoder-cache-dir" in shown
    assert "--kv-cache-dtype" not in shown


def test_a_flash_router_is_refused_before_anything_is_loaded(tmp_path):
    folder = str(write_original(tmp_path / "model", TWINS["InternVL3_5-1B-Flash"]))
    with pytest.raises(InvalidConfig, match="add --no-flash-router"):
        ModelInputs.of(read_encode_settings([folder], {}).engine)
    assert ModelInputs.of(read_encode_settings([folder, "--no-flash-router"], {}).engine).embeddings is not None
