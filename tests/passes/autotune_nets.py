"""Small modules for the tests of the autotune pass, and one run of it."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from aigc_compress.artifact import Artifact
from aigc_compress.passes import PASSES, AutotuneConfig, Context

PACKAGES = ("neural_compressor", "torchao")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)}: pip install '.[neural-compressor]'"
)
PASS = PASSES["autotune"]


class Net(nn.Module):
    """A module with the names that the line asks for."""

    output_names = ("y",)

    def __init__(self, *layers, inputs=("x",)):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.input_names = inputs

    def forward(self, x):
        return self.layers(x)


class Cells(nn.Module):
    """One step of an LSTM and a GRU cell, and a head."""

    input_names = ("x", "h", "c")
    output_names = ("y", "c_out")

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(6, 8)
        self.gru = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x, h, c):
        h, c = self.lstm(x, (h, c))
        return self.head(self.gru(h, h)), c


def convolutions():
    return Net(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, 2, padding=0),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


def transposed():
    return Net(
        nn.ConvTranspose2d(2, 6, 5, 2, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2),
        nn.Tanh(),
    )


def one_dimensional():
    return Net(nn.Conv1d(3, 6, 3, padding="same"), nn.ReLU(), nn.ConvTranspose1d(6, 2, 4, 2, 1))


def linears():
    return Net(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


NETS = {
    "convolutions": (convolutions, {"x": (2, 8, 8)}, {"Conv": 2, "Gemm": 1}),
    "transposed": (transposed, {"x": (2, 5, 5)}, {"ConvTranspose": 2}),
    "one-dimensional": (one_dimensional, {"x": (3, 10)}, {"Conv": 1, "ConvTranspose": 1}),
    "linears": (linears, {"x": (8,)}, {"Gemm": 3}),
    "cells": (Cells, {"x": (6,), "h": (8,), "c": (8,)}, {"Gemm": 5}),
}


def prepared(make):
    """Return the module in evaluation mode, its BatchNorm statistics far from 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
    return module.eval()


def drawn(shapes, batch, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((batch, *shape), np.float32) for name, shape in shapes.items()
    }


def context_of(shapes, **changes):
    return Context(
        (drawn(shapes, 2, 1), drawn(shapes, 3, 2)),
        tuple(drawn(shapes, 64, seed) for seed in (3, 4, 5)),
        **changes,
    )


def tuned(make, shapes, context=None, **settings):
    module = prepared(make)
    axes = {name: {0: "batch"} for name in shapes}
    config = AutotuneConfig(**{"dynamic_axes": axes, **settings})
    return module, PASS.run(Artifact("torch", module), config, context or context_of(shapes))


def torch_outputs(module, feeds):
    with torch.inference_mode():
        outputs = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return dict(zip(module.output_names, (o.numpy() for o in outputs), strict=True))


def numbers_of(artifact):
    return artifact.history[-1].numbers
