"""`tilewise serve [MODEL]`: OpenAI's API over HTTP, with vLLM's flags; `encode-server`: a vision tower alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from tilewise.cli.flags.flag import BadUsage, Flag, dashes
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.settings import CONFIG, Settings, make_settings, serve_flags, values_of_line
from tilewise.cli.flags.verb import Verb


def serve(line: CommandLine) -> int:
    return run_server(make_settings(values_of_line(line), os.environ))


def run_server(settings: Settings, encoding: bool = False) -> int:
    settings.log("APIServer")
    # Not above: `tilewise serve --help` has no need of the server's modules.
    import tilewise.server

    return tilewise.server.run(settings.engine, settings.server, encoding=encoding)


_USEFUL = frozenset(
    f"""
    {CONFIG.name} model revision hub download_dir trust_remote_code dtype quantization load_format
    tokenizer tokenizer_revision hf_token mmproj batch_invariant check_numerics
    encoder_cache_gb encoder_cache_dir encoder_cache_dir_gb
    limit_mm_per_prompt mm_processor_kwargs mm_processor_cache_gb tile_budget flash_router
    exif_orientation max_image_pixels max_image_aspect_ratio allowed_local_media_path allowed_media_domains
    max_body_mb h11_max_incomplete_event_size h11_max_header_count max_num_queued_reqs
    request_timeout shutdown_timeout max_engine_restarts engine_restart_window
    served_model_name detail_tiles strict_fields
    uvicorn_log_level disable_uvicorn_access_log disable_access_log_for_endpoints
    """.split()
)
"""Flags of `serve` that mean something where only tower and projector run, beside those of two groups."""
_GROUPS = ("address", "access")


@cache
def encode_flags() -> tuple[Flag, ...]:
    """Return the flags of `serve`, those without a meaning here in no group."""
    return tuple(
        flag if flag.name in _USEFUL or flag.group in _GROUPS else replace(flag, group="") for flag in serve_flags()
    )


def encode_server(line: CommandLine) -> int:
    return run_server(encode_settings(values_of_line(line), os.environ), encoding=True)


def encode_settings(values: dict[str, Any], environment: Mapping[str, str]) -> Settings:
    """Make an encode server's settings. Raises BadUsage for flags of `serve` that have no meaning here."""
    known = {flag.name for flag in encode_flags() if flag.group}
    if others := [dashes(name) for name in values if name not in known]:
        raise BadUsage(
            f"{', '.join(others)}: for `tilewise serve` alone, as nothing but tower and projector runs here. Leave "
            "that out; `tilewise encode-server --help` lists the flags."
        )
    settings = make_settings({**values, "enable_mm_embeds": True}, environment)
    del settings.given["enable_mm_embeds"]
    return settings


SERVE = Verb(
    usage="tilewise serve [MODEL] [FLAG ...]",
    about="Serve a model over HTTP, in OpenAI's form. Without MODEL, the demo model. The flags are vLLM's.",
    run=serve,
    shared=serve_flags,
    names_model=True,
    examples="""\
examples:
  tilewise serve
      the demo model at http://127.0.0.1:8000/v1
  tilewise serve OpenGVLab/InternVL3-8B --max-model-len 16K --limit-mm-per-prompt '{"image": 4}'
  tilewise serve ./InternVL3-1B --host 127.0.0.1 --port 2002 --served-model-name internvl3 --api-key SECRET
  tilewise serve ./InternVL3-1B --allowed-local-media-path /data/pictures
      lets requests name files below that folder, as file:///data/pictures/sign.jpg
  tilewise serve --config server.yml --port 8001
      flags from a YAML file (port: 8000); the command line wins
""",
)
ENCODE_SERVER = Verb(
    usage="tilewise encode-server [MODEL] [FLAG ...]",
    about="Encode pictures with a model's vision tower, for servers elsewhere that take image_embeds (tilewise serve "
    "--enable-mm-embeds, vLLM). Of the checkpoint only tower and projector are read. The flags are those of serve.",
    run=encode_server,
    shared=encode_flags,
    names_model=True,
    examples="""\
examples:
  tilewise encode-server OpenGVLab/InternVL3-8B --port 8100 --encoder-cache-dir /var/cache/tiles
      POST /v1/encode at http://127.0.0.1:8100; tiles that were seen once are kept on disk
""",
)
