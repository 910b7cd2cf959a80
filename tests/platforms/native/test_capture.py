"""Captured steps: a replay equals the step computed again, and what could not be replayed is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.platforms.test_ops import noise
from tilewise.platforms.base import Capture, NotCapturable
from tilewise.platforms.cpu import CpuPlatform
from tilewise.platforms.cpu.native import NoKernels
from tilewise.platforms.cpu.native.capture import Arena
from tilewise.platforms.forms import Dense
from tilewise.platforms.ops import Ops

PLATFORM = CpuPlatform()
OPS = PLATFORM.ops()
pytestmark = pytest.mark.skipif(isinstance(PLATFORM.kernels, NoKernels), reason="kernels cannot be built here")

TABLE, NORM = noise(50, 64), noise(64, seed=1)


@pytest.fixture
def capture() -> Capture:
    capture = PLATFORM.capturer(OPS)
    assert capture is not None
    return capture


@pytest.mark.parametrize("store", [OPS.store, OPS.store_int8], ids=["float32", "int8"])
@torch.inference_mode()
def test_a_replay_reads_what_its_inputs_hold_by_then(capture: Capture, store: Callable[..., object]) -> None:
    """Of parts of products, as heads are, and through more layers than there are blocks of memory between them."""
    wide, back = (
        OPS.store([Dense(noise(256, 64, seed=2))], noise(256, seed=3)),
        OPS.store([Dense(noise(64, 128, seed=4))], None),
    )
    ids = torch.tensor([3, 14, 15])

    def step() -> Tensor:
        x = torch.index_select(TABLE, 0, ids)
        for _ in range(5):
            left, _ = wide.apply(OPS.rms_norm(x, NORM, 1e-6), OPS).split([128, 128], dim=-1)
            heads = OPS.rms_norm(left.unflatten(-1, (4, 32)), NORM[:32], 1e-6)
            x = OPS.add_scaled(x, None, back.apply(heads.flatten(1), OPS))
        return x

    first = step()
    graph = capture(step)
    assert torch.equal(graph.result, first)
    for values in ([9, 2, 6], [0, 0, 49], [3, 14, 15]):
        ids.copy_(torch.tensor(values))
        assert torch.equal(graph.replay(), step())
    assert torch.equal(graph.result, first)


@torch.inference_mode()
def test_graphs_share_memory_but_for_their_results(capture: Capture) -> None:
    x = noise(2, 64)
    one, other = capture(lambda: OPS.gelu(OPS.gelu(x))), capture(lambda: OPS.gelu(OPS.gelu(OPS.gelu(x))))
    expected = OPS.gelu(OPS.gelu(x)), OPS.gelu(OPS.gelu(OPS.gelu(x)))
    for _ in range(2):
        assert torch.equal(one.replay(), expected[0])
        assert torch.equal(other.replay(), expected[1])
        assert torch.equal(one.result, expected[0])


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: x + 1, "it needs add of torch"),
        (lambda x: x.add_(1), "it needs add_ of torch"),
        (lambda x: x.float(), "it needs float of torch"),
        (lambda x: x * x.tolist()[0][0], "it needs tolist of torch"),
        (lambda x: x[: int(x[0, 0].item())], "it needs item of torch"),
        (lambda x: x if x[0, 0] else OPS.gelu(x), "it needs __bool__ of torch"),
        (lambda x: torch.softmax(x, -1), "it needs softmax of torch"),
        (lambda x: x[x > 0], r"it needs \w*gt\w* of torch"),
        (lambda x: OPS.gelu(x[torch.arange(2)]), "it needs arange of torch"),
        (lambda x: x.split([8, 56], dim=-1)[0].flatten(), "it copies a tensor"),
        (lambda x: x[[0, 1]], "it copies a tensor"),
        (Ops().gelu, "it needs gelu of torch"),
    ],
)
def test_what_could_not_be_replayed_is_refused(capture: Capture, step: Callable[[Tensor], Tensor], reason: str) -> None:
    x = noise(2, 64)
    with torch.inference_mode(), pytest.raises(NotCapturable, match=reason):
        capture(lambda: step(x))
    assert torch.equal(capture(lambda: OPS.gelu(x)).replay(), OPS.gelu(x)), "the next one is not disturbed"


@torch.inference_mode()
def test_other_threads_launches_are_their_own(capture: Capture) -> None:
    x, elsewhere = noise(2, 64), noise(2, 64, seed=1)

    with ThreadPoolExecutor(1) as pool:

        def step() -> Tensor:
            pool.submit(OPS.gelu, elsewhere).result()
            return OPS.gelu(x)

        graph = capture(step)
    assert len(graph.launches) == 1
    assert torch.equal(graph.replay(), OPS.gelu(x))


def test_ops_without_kernels_capture_nothing() -> None:
    assert PLATFORM.capturer(Ops()) is None
    assert PLATFORM.capturer(PLATFORM.ops(batch_invariant=True)) is None


def test_memory_comes_back_with_the_last_view_of_it() -> None:
    arena = Arena()
    x = arena.empty((4, 8), torch.float32)
    view = x.unflatten(-1, (2, 4))[:, 0]
    kept = view.data_ptr()
    del x
    assert arena.empty((1,), torch.bfloat16).data_ptr() != kept, "a view of it lives"
    del view
    again = arena.empty((8, 2), torch.bfloat16)
    assert arena.nbytes == 4 * 8 * 4 + 2
    assert (again.data_ptr(), again.shape, again.dtype) == (kept, (8, 2), torch.bfloat16)
    assert arena.empty((4, 8), torch.float32).data_ptr() not in (kept, 0)
    assert arena.nbytes == 2 * 4 * 8 * 4 + 2


def test_the_smallest_block_that_is_large_enough_is_lent() -> None:
    arena = Arena()
    sizes = [arena.empty((size,), torch.uint8) for size in (100, 10, 50)]
    place = sizes[2].data_ptr()
    del sizes
    assert arena.empty((20,), torch.uint8).data_ptr() == place
