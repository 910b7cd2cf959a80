"""`tilewise encode-server [MODEL]`: the vision tower of a model as a service, for engines elsewhere."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tilewise.cli.flags.flag import BadUsage
from tilewise.cli.flags.help import asked_for_help, help_page
from tilewise.cli.flags.parse import CommandLine
from tilewise.cli.flags.table import CONFIG, Settings, make_settings, option_flags, serve_flags, values_of_line
from tilewise.cli.serve import log_settings
from tilewise.config import EngineConfig
from tilewise.server.config import ServerConfig

USAGE = "tilewise encode-server [MODEL] [FLAG ...]"
ABOUT = (
    "Encode pictures with a model's vision tower, for servers elsewhere that take image_embeds (tilewise serve "
    "--enable-mm-embeds, vLLM). Of the checkpoint only tower and projector are read. The flags are those of serve."
)
EXAMPLES = """\
examples:
  tilewise encode-server OpenGVLab/InternVL3-8B --port 8100 --encoder-cache-dir /var/cache/tiles
      POST /v1/encode at http://127.0.0.1:8100; tiles that were seen once are kept on disk
"""
_ENGINE = frozenset(
    (
        *("model", "revision", "hub", "download_dir", "trust_remote_code", "dtype", "quantization", "load_format"),
        *("tokenizer", "tokenizer_revision", "hf_token", "mmproj", "batch_invariant"),
        *("encoder_cache_gb", "encoder_cache_dir", "encoder_cache_dir_gb"),
        *("limit_mm_per_prompt", "mm_processor_kwargs", "mm_processor_cache_gb", "tile_budget", "flash_router"),
        *("exif_orientation", "max_image_pixels", "max_image_aspect_ratio"),
        *("allowed_local_media_path", "allowed_media_domains"),
    )
)
_SERVER = frozenset(
    (
        *("max_body_mb", "h11_max_incomplete_event_size", "h11_max_header_count", "max_num_queued_reqs"),
        *("request_timeout", "shutdown_timeout", "max_engine_restarts", "engine_restart_window"),
        *("served_model_name", "detail_tiles", "strict_fields"),
        *("uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints"),
    )
)
_GROUPS = ("address", "access")
FLAGS = (
    CONFIG,
    *(flag for flag in option_flags(EngineConfig) if flag.name in _ENGINE),
    *(flag for flag in option_flags(ServerConfig) if flag.name in _SERVER or flag.group in _GROUPS),
)


def read_encode_settings(words: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read an encode server's settings as `read_settings` reads a server's.

    Raises its errors, and BadUsage for flags of `serve` that have no meaning here.
    """
    values = values_of_line(CommandLine.read(words, serve_flags()))
    known = {flag.name for flag in FLAGS}
    if others := [f"--{name.replace('_', '-')}" for name in values if name not in known]:
        raise BadUsage(
            f"{', '.join(others)}: for `tilewise serve` alone, as nothing but tower and projector runs here. Leave "
            "that out; `tilewise encode-server --help` lists the flags."
        )
    settings = make_settings({**values, "enable_mm_embeds": True}, environment)
    del settings.given["enable_mm_embeds"]
    return settings


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("encode-server", add_help=False)
    parser.takes_all_words = True
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if (topic := asked_for_help(options.words)) is not None:
        print(help_page(USAGE, ABOUT, EXAMPLES, FLAGS, topic))
        return 0
    settings = read_encode_settings(options.words, os.environ)
    # Not above: `tilewise --help` has no need of the server's modules.
    from tilewise.console import set_up_logs

    set_up_logs("APIServer", os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    log_settings(settings)
    import tilewise.server

    return tilewise.server.run(settings.engine, settings.server, encoding=True)
