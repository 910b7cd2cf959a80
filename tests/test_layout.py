"""Which layers and experts a rank has: each exactly one rank's, and shared out evenly."""

import pytest

from tilewise.errors import InvalidConfig
from tilewise.layout import Layout


@pytest.mark.parametrize(("stages", "layers"), [(1, 24), (2, 24), (5, 24), (4, 4), (3, 94)])
def test_every_layer_is_of_one_stage(stages: int, layers: int) -> None:
    parts = [Layout(pipeline=stages).layers(stage, layers) for stage in range(stages)]
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_stage_without_a_layer_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="pipeline_parallel_size=5 is more than the 4 layers"):
        Layout(pipeline=5).layers(0, 4)


@pytest.mark.parametrize("placement", ["linear", "round_robin"])
@pytest.mark.parametrize(("ranks", "experts"), [(2, 8), (4, 6), (16, 128), (3, 128)])
def test_every_expert_is_of_one_rank(placement: str, ranks: int, experts: int) -> None:
    layout = Layout(tensor=ranks, experts=placement)  # type: ignore[arg-type]
    parts = [layout.experts_of(rank, experts) for rank in range(ranks)]
    assert sorted(expert for part in parts for expert in part) == list(range(experts))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_placements_are_those_of_vllm() -> None:
    """Source: vLLM's documentation of --expert-placement-strategy, with 4 experts on 2 ranks."""
    assert Layout(2, experts="linear").experts_of(0, 4) == (0, 1)
    assert Layout(2, experts="round_robin").experts_of(0, 4) == (0, 2)
