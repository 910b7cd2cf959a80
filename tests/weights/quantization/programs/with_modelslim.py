"""Quantises a checkpoint by msmodelslim's own command: `FOLDER OUT MODEL [WEIGHTS ROWS]`.

MODEL is a published one, whose recipe is taken. WEIGHTS and ROWS (JSON of msmodelslim's `qconfig`) give another in its
place, for the decoder's layers. FOLDER needs an index of its files. What each quantised module makes of some rows by
msmodelslim's own arithmetic is written to OUT.safetensors as `NAME.rows` [rows, in] and `NAME.product` [rows, out]: of
random rows where calibration found how rows are rounded, and else of the identity's, which no rounding changes.
"""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

CLASSES = "modeling_internvl_chat"


def import_torchvision() -> None:
    """Its wheels are for machines with CUDA, and where torch is another build, two ops are missed on the way in."""
    try:
        import torchvision
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision  # noqa: F401


def add_classes(folder: Path) -> None:
    """Give a twin what published checkpoints carry: the file of its classes, and where they are."""
    shutil.copy(Path(__file__).parent / f"{CLASSES}.py", folder)
    path = folder / "config.json"
    classes = {"AutoConfig": f"{CLASSES}.InternVLChatConfig", "AutoModel": f"{CLASSES}.InternVLChatModel"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))


def note_products(found: dict[str, Tensor]) -> None:
    """Have the writer of files note what each quantised module makes of rows."""
    from msmodelslim.core.quant_service.modelslim_v1.save.ascendv1 import AscendV1Saver
    from msmodelslim.ir import (
        AutoFakeQuantLinear,
        W8A8StaticFakeQuantLinear,
        WFP8AFP8DynamicPerChannelFakeQuantLinear,
    )

    process, generator = AscendV1Saver._process_module, torch.Generator().manual_seed(3)

    @torch.no_grad()
    def noting(self: AscendV1Saver, prefix: str, module: nn.Module) -> None:
        if isinstance(module, AutoFakeQuantLinear):
            inputs, copied = module.weight.shape[1], deepcopy(module).float()
            if isinstance(module, WFP8AFP8DynamicPerChannelFakeQuantLinear):  # whose codes only the writer rounds
                copied.weight.data = copied.weight.to(torch.float8_e4m3fn).float()
            calibrated = type(module) is W8A8StaticFakeQuantLinear
            x = 2 * torch.randn(3, inputs, generator=generator) if calibrated else torch.eye(inputs)
            found[f"{prefix}.rows"], found[f"{prefix}.product"] = x, copied(x).contiguous()
        process(self, prefix, module)

    AscendV1Saver._process_module = noting


def recipe(out: Path, weights: str, rows: str) -> Path:
    """Write msmodelslim's recipe for layers of the decoder, as JSON, which is YAML, too."""
    layers = {
        "type": "linear_quant",
        "qconfig": {"weight": json.loads(weights), "act": json.loads(rows)},
        "include": ["language_model.model.layers.*"],
        "exclude": ["*mlp.gate"],
    }
    path = out.with_suffix(".yaml")
    spec = {"process": [layers], "dataset": "calibImages", "save": [{"type": "ascendv1_saver", "part_file_size": 4}]}
    path.write_text(json.dumps({"apiversion": "multimodal_vlm_modelslim_v1", "spec": spec}))
    return path


def main(folder: Path, out: Path, model: str, *own: str) -> None:
    import_torchvision()
    from msmodelslim.cli.__main__ import main as msmodelslim

    add_classes(folder)
    found: dict[str, Tensor] = {}
    note_products(found)
    how = ["--config_path", str(recipe(out, *own))] if own else ["--quant_type", "w8a8"]
    sys.argv = ["msmodelslim", "quant", "--device", "cpu", "--model_type", model, "--model_path", str(folder)]
    sys.argv += ["--save_path", str(out), "--trust_remote_code", "True", *how]
    ended = msmodelslim()
    save_file(found, out.with_suffix(".safetensors"))
    sys.exit(ended)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
