"""The input of a plan: a model and its options, devices, a layout, and the requests that will come."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tilewise.config import EngineConfig
from tilewise.errors import InvalidConfig, did_you_mean
from tilewise.layout import Layout
from tilewise.option import check_range

MIB = 2**20
_EXAMPLES = "16x64GiB, 2xH100, RTX4090, cpu or cpu:16GiB"
_COUNTED = re.compile(r"(?P<count>-?\d{1,18})\s*[x×*]\s*(?P<what>.*)", re.IGNORECASE | re.DOTALL)
_MEMORY = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,18})?)\s*(?P<unit>[KMGT]i?B?)", re.IGNORECASE)
_POWERS = {letter: power for power, letter in enumerate("KMGT", 1)}
_RATE = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,18})?)\s*(?P<unit>[GT]?)(B/s)?", re.IGNORECASE)
MOST = 4096
"""Most devices of a plan."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device. What is not known of its speed is None."""

    name: str
    memory: int
    """Bytes of memory."""
    bandwidth: float | None = None
    """Bytes a second between its memory and its arithmetic."""
    floats: float | None = None
    """Operations a second on dense matrices of bfloat16; a multiplication with its addition is two."""
    int8: float | None = None
    """Operations a second on dense matrices of int8, counted likewise."""
    here: bool = False
    """True for the processor of this machine, whose memory all ranks share, however many there are."""
    memory_stated: bool = True
    npu: bool = False
    """True for an Ascend NPU, whose KV blocks are larger."""

    def shared_by(self, ranks: int) -> Device:
        """Return what each of several ranks has of this device."""
        bandwidth, floats, int8 = (rate and rate / ranks for rate in (self.bandwidth, self.floats, self.int8))
        return replace(self, memory=self.memory // ranks, bandwidth=bandwidth, floats=floats, int8=int8)


@dataclass(frozen=True, slots=True)
class Devices:
    count: int
    device: Device

    def __str__(self) -> str:
        return self.device.name if self.device.here or self.count == 1 else f"{self.count} x {self.device.name}"


def _gpu(name: str, mib: int, bandwidth: float, floats: float, int8: float) -> Device:
    """Return a device with memory in MiB, bandwidth in GB/s and operations in tera a second."""
    return Device(name, mib * MIB, bandwidth * 1e9, floats * 1e12, int8 * 1e12)


def _npu(name: str, mib: int, bandwidth: float, floats: float) -> Device:
    """Return an Ascend NPU, which does twice as many operations in int8."""
    return replace(_gpu(name, mib, bandwidth, floats, 2 * floats), npu=True)


# Memory is what nvidia-smi and npu-smi show as the total, which is less than the number in a name where a part of it
# holds checksums. Operations are those of dense matrices: data sheets often give twice as many, for sparse ones.
# Sources: NVIDIA's data sheets of A10 (2021), A30 (2021), A40 (2020), A100 (2022, SXM), L4 (2023), L20 (2023), L40S
# (2023), H20 (2023), H100 and H800 (2023, SXM), H200 (2024, SXM) and B200 (2024, HGX); its white papers on GA102, Ada
# and RTX Blackwell for RTX 3090, A6000, RTX 4090, RTX 6000 Ada and RTX 5090 (with sums in float32). Huawei states
# products and not chips: Atlas 800T A2 stands for 910B2 and, in its smaller form, 910B3, Atlas 800I A2 for 910B4, and
# FP16 for bfloat16, so these are approximate. A 910C has two dies, each of which is a device of its own to npu-smi
# and torch: the row is one die ("Serving Large Language Models on Huawei CloudMatrix384", arXiv 2506.12708).
DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("A10", 23028, 600, 125, 250),
        _gpu("A30", 24576, 933, 165, 330),
        _gpu("A40", 46068, 696, 149.7, 299.3),
        _gpu("A6000", 49140, 768, 154.8, 309.7),
        _gpu("A100-40G", 40960, 1555, 312, 624),
        _gpu("A100-80G", 81920, 2039, 312, 624),
        _gpu("L4", 23034, 300, 121, 242),
        _gpu("L20", 46068, 864, 119.5, 239),
        _gpu("L40S", 46068, 864, 362, 733),
        _gpu("H20", 97871, 4000, 148, 296),
        _gpu("H100", 81559, 3350, 989, 1979),
        _gpu("H800", 81559, 3350, 989, 1979),
        _gpu("H200", 143771, 4800, 989, 1979),
        _gpu("B200", 183359, 8000, 2250, 4500),
        _gpu("RTX3090", 24576, 936, 71, 284),
        _gpu("RTX4090", 24564, 1008, 165.2, 660.6),
        _gpu("RTX5090", 32607, 1792, 209.5, 838),
        _gpu("RTX6000-Ada", 49140, 960, 364.2, 728.5),
        _npu("910B2", 65536, 1600, 376),
        _npu("910B3", 65536, 1600, 313),
        _npu("910B4", 32768, 800, 280),
        _npu("910C", 65536, 1600, 376),
    )
}
_ALSO = {"A100": "A100-80G", "H100-80G": "H100", "A3": "910C"}
CPU = "cpu"


def read_devices(text: str, memory_here: int, bandwidth: str | None = None, tflops: str | None = None) -> Devices:
    """Read `16x64GiB`, `2xH100`, `cpu`: how many, and a name, an amount of memory, or both as in `cpu:16GiB`.

    `memory_here` is what this machine has. `bandwidth` (`1600` or `1.6TB/s`; without a unit in GB/s) and `tflops`
    (`376`, or `376:752` with those of int8 behind) are stated where the table has no device, and win where it has.

    Raises InvalidConfig that says what can be named.
    """
    counted = _COUNTED.fullmatch(text.strip())
    count, what = (int(counted["count"]), counted["what"].strip()) if counted else (1, text.strip())
    if not 1 <= count <= MOST:
        raise InvalidConfig(f"--devices {text}: there must be between 1 and {MOST} of them, got {count}.")
    if not what:
        raise InvalidConfig(f"--devices {text}: of what? Give a memory or a name behind it, as {_EXAMPLES}.")
    device = _device(text, what, memory_here)
    if device.here and counted and count > 1:
        raise InvalidConfig(f"--devices {text}: this machine is one device, whatever ranks it runs: use {CPU}.")
    if bandwidth is not None:
        device = replace(device, bandwidth=_bandwidth(bandwidth))
    if tflops is not None:
        floats, int8 = _floats_and_int8(tflops)
        device = replace(device, floats=floats, int8=int8)
    return Devices(count, device)


def _device(text: str, what: str, memory_here: int) -> Device:
    name, colon, amount = what.partition(":")
    if not colon and (memory := _bytes(what)) is not None:
        return Device(what, memory)
    memory = _bytes(amount.strip()) if colon else None
    if colon and memory is None:
        raise InvalidConfig(f"--devices {text}: {amount.strip()!r} is no memory; write it as 64GiB or 80GB.")
    if name.strip().lower() == CPU:
        return Device("this machine", memory or memory_here, here=True, memory_stated=memory is not None)
    found = _named(text, name.strip())
    return found if memory is None else replace(found, name=f"{found.name} with {amount.strip()}", memory=memory)


def _named(text: str, name: str) -> Device:
    plain = re.sub(r"[\s_-]|NVIDIA|GEFORCE|RTX|TESLA|ASCEND|GENERATION$|GB$|GIB$", "", name.upper())
    known = {re.sub(r"-|RTX", "", key.upper()): device for key, device in DEVICES.items()}
    known |= {re.sub(r"-", "", key): DEVICES[meant] for key, meant in _ALSO.items()}
    found = known.get(plain) or known.get(f"{plain}G")
    if found is None:
        near = did_you_mean(name.upper(), (*DEVICES, *_ALSO, CPU))
        raise InvalidConfig(
            f"--devices {text}: no device {name!r} is known, and it is no memory such as 64GiB.{near} Known are "
            f"{', '.join(DEVICES)} and {CPU}; of any other, state the memory, with --bandwidth and --tflops for floors."
        )
    return found


def _bytes(text: str) -> int | None:
    """Read an amount of memory: GiB and G are powers of 1024, GB those of 1000. None = it is none."""
    found = _MEMORY.fullmatch(text)
    if found is None:
        return None
    unit = found["unit"].upper()
    base = 1000 if unit.endswith("B") and "I" not in unit else 1024
    return round(float(found["number"]) * base ** _POWERS[unit[0]]) or None


def _bandwidth(text: str) -> float:
    found = _RATE.fullmatch(text.strip())
    rate = float(found["number"]) * (1e12 if found["unit"].upper() == "T" else 1e9) if found else 0
    if not rate:
        raise InvalidConfig(f"--bandwidth {text}: give the GB/s of one device, as 1600 or 1.6TB/s.")
    return rate


def _floats_and_int8(text: str) -> tuple[float, float]:
    """Read operations a second of floats and of int8, which is no faster where it is not stated."""
    try:
        found = [float(part) * 1e12 for part in text.split(":")]
    except ValueError:
        found = []
    if len(found) not in (1, 2) or not all(0 < rate < 1e20 for rate in found):
        raise InvalidConfig(
            f"--tflops {text}: give the TFLOP/s of one device in dense bfloat16, or with those of int8 as 376:752."
        )
    return found[0], found[-1]


MARKS = 2
"""Tokens around the rows of a picture: <img> and </img>."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """A prompt with so many tokens of text and so many pictures, each in so many tiles, and its answer."""

    prompt_tokens: int = 256
    pictures: int = 1
    tiles: int = 13
    """Tiles of each picture, thumbnail included."""
    answer_tokens: int = 512

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("pictures", 0), ("tiles", 1), ("answer_tokens", 1)):
            check_range(name, getattr(self, name), least)

    def prompt(self, tokens_per_tile: int) -> int:
        """Return the tokens of the whole prompt."""
        return self.prompt_tokens + self.pictures * self.picture(tokens_per_tile)

    def tokens(self, tokens_per_tile: int) -> int:
        """Return the tokens of prompt and answer together."""
        return self.prompt(tokens_per_tile) + self.answer_tokens

    def picture(self, tokens_per_tile: int) -> int:
        return self.tiles * tokens_per_tile + MARKS

    def most_pictures(self, context: int, tokens_per_tile: int, limit: int | None) -> int:
        """Return how many pictures such a request may have in a context; `limit` is that of limit_mm_per_prompt."""
        room = max(0, context - self.prompt_tokens - self.answer_tokens) // self.picture(tokens_per_tile)
        return room if limit is None else min(room, limit)

    def check_limit(self, limits: dict[str, int] | None) -> None:
        """Raise InvalidConfig for more pictures than a prompt may have."""
        limit = (limits or {}).get("image")
        if limit is not None and self.pictures > limit:
            raise InvalidConfig(
                f"--pictures {self.pictures} is more than the {limit} that limit_mm_per_prompt allows: lower one or "
                "raise the other."
            )


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan: options, devices, a layout, and the shape of the requests that will come."""

    config: EngineConfig
    quantization: str | None
    devices: Devices
    layout: Layout | None
    """Layout that is asked for; None = the recommended one."""
    shape: RequestShape
    tiles_stated: bool
    """True if `shape` has tiles that were stated; else a picture has as many as the checkpoint cuts at most."""
