"""A module as a graph of torch's operators, and such a graph as a runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from aigc_compress.errors import PassError, first_line
from aigc_compress.passes.export import example_arguments
from aigc_compress.task import Feeds

from .cells import cells_as_linears

__all__ = ["Program", "capture"]


class Program(nn.Module):
    """A graph with the names of its inputs and outputs; it can be run and exported."""

    def __init__(
        self, graph: GraphModule, input_names: Sequence[str], output_names: Sequence[str]
    ) -> None:
        super().__init__()
        self.captured = graph  # torch.export stumbles over a submodule called `graph`
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the graph makes of its inputs, in order."""
        return self.captured(*inputs)

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        inputs = [torch.from_numpy(np.asarray(feeds[name])) for name in self.input_names]
        with torch.inference_mode():
            outputs = self(*inputs)
        listed = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: value.numpy() for name, value in zip(self.output_names, listed, strict=True)}


def capture(module: Any, example: Feeds, axes: Mapping[str, Mapping[int, str]]) -> Program:
    """Trace a module with torch.export; recurrent cells become linear layers.

    Args:
        module: in evaluation mode, with `input_names` and `output_names`.
        example: a set of feeds of no size 1 along dynamic axes, which would be frozen.
        axes: names of the dynamic axes, by input and axis.

    Raises:
        PassError: torch.export refuses the module.
    """
    inputs, shapes = example_arguments(module, example, axes)
    try:
        exported = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
        cells = cells_as_linears()
        if any(node.target in cells for node in exported.graph.nodes):
            exported = exported.run_decompositions(cells)
    except Exception as error:  # what a module's own code raises while it is traced comes through
        raise PassError(f"torch.export refuses this module: {first_line(error)}") from error
    graph: Any = exported.module(check_guards=False)
    # torch 2.13 takes the time axis of an LSTM for one of fixed size, and would refuse others; the
    # graph runs at them, as whoever captures must check.
    graph.validate_inputs = False
    return Program(graph, module.input_names, module.output_names)
