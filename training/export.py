"""Write the trained model as a checkpoint folder in the original InternVL format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from settings import PREPROCESSOR, generation_config, model_config
from tokenizer import train_tokenizer, write_tokenizer


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One settings file, readable by people."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(state_file: Path, folder: Path) -> None:
    """Write everything but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    weights = torch.load(state_file, map_location="cpu")["model"]
    rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only
    write_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", model_config(tokenizer))
    write_json(folder / "generation_config.json", generation_config(tokenizer))
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, help="state.pt of a training run")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.state, arguments.folder)


if __name__ == "__main__":
    main()
