"""Quantises the decoder of a twin with auto-round itself: `FOLDER FLOATS FORMAT BITS SYMMETRIC`.

FOLDER gets the layers as auto-round packs them, and its description of them; FLOATS, a copy of FOLDER, the numbers that
auto-round makes of the codes, in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from auto_round import AutoRound
from auto_round.export.export_to_awq.utils import dequantize_gemm
from auto_round_extension.torch.qlinear_torch import QuantLinear as AsTheyAre
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as LessOne
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

PREFIX = "language_model."
GROUP = 32


class NoTokenizer:
    """Rounding to the nearest reads no text."""


def decoder_of(folder: Path) -> Qwen2ForCausalLM:
    config = json.loads((folder / "config.json").read_text())["llm_config"]
    model = Qwen2ForCausalLM(Qwen2Config(**config)).float()
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix(PREFIX): v.float() for k, v in tensors.items() if k.startswith(PREFIX)})
    return model


def put_decoder(folder: Path, decoder: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(PREFIX)}
    save_file(kept | {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in decoder.items()}, file)


def dequantised(packed: dict[str, Tensor], form: str, bits: int) -> dict[str, Tensor]:
    """The same tensors in float32, with matrices that auto-round's own layers multiply by."""
    found = {name: x.float() for name, x in packed.items() if name.rpartition(".")[2] in ("weight", "bias")}
    for name in [name for name in packed if name.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        codes, zeros, scales = (packed[f"{module}.{end}"] for end in ("qweight", "qzeros", "scales"))
        if "awq" in form:
            matrix = dequantize_gemm(codes, zeros, scales.float(), bits, GROUP)
        else:
            inputs = GROUP * len(scales)
            kind = LessOne if form == "auto_gptq" else AsTheyAre
            layer = kind(bits, GROUP, inputs, scales.shape[1], bias=False)
            layer.qweight, layer.qzeros, layer.scales = codes, zeros, scales.float()
            matrix = layer(torch.eye(inputs))
        found[f"{module}.weight"] = matrix.T.contiguous()
    return found


def main(folder: Path, floats: Path, form: str, bits: int, symmetric: bool) -> None:
    """auto-round chooses the packing of "auto_round" itself: that of GPTQ where codes are symmetric."""
    rounding = AutoRound(
        decoder_of(folder),
        NoTokenizer(),
        bits=bits,
        group_size=GROUP,
        sym=symmetric,
        iters=0,
        disable_opt_rtn=True,
        device_map="cpu",
    )
    rounding.quantize()
    with TemporaryDirectory() as out:
        rounding.save_quantized(out, format=form, inplace=False)
        (file,) = Path(out).rglob("model.safetensors")
        packed = load_file(file)
        description = json.loads((file.parent / "quantization_config.json").read_text())
    packing = description.get("packing_format", form).removeprefix("auto_round:")
    put_decoder(folder, packed)
    put_decoder(floats, dequantised(packed, packing, bits))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": description}))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "True")
