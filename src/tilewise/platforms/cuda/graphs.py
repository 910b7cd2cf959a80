"""CUDA graphs: a step's kernels with all their arguments, which are launched again as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tilewise.platforms.base import Capture, NotCapturable


@dataclass(frozen=True, slots=True)
class CudaGraph:
    graph: torch.cuda.CUDAGraph
    result: Tensor

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.result


def capturer_of(device: torch.device) -> Capture:
    """What captures steps, whose memory between kernels is one pool's: one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Callable[[], Tensor]) -> CudaGraph:
        # Run once outside, where kernels are compiled and libraries take their workspaces. A step may be run again:
        # it writes the same keys and values to the same places.
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            step()
        torch.cuda.current_stream(device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                result = step()
        except RuntimeError as error:
            raise NotCapturable(str(error).splitlines()[0]) from error
        captured = CudaGraph(graph, result)
        captured.replay()  # nothing was computed while it was captured
        return captured

    return capture
