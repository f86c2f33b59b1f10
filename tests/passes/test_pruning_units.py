"""Which units modules have, and that a module without them equals one in which they are zero."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from aigc_compress.passes.pruning import find_units
from aigc_compress.passes.pruning.surgery import mask


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.act = nn.PReLU(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        y = self.act(self.depthwise(F.hardswish(self.first(x))))
        gate = self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return self.last(y * torch.sigmoid(gate))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.join, self.norm = nn.Conv2d(16, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.last, self.shuffle = nn.Conv2d(12, 12, 1), nn.PixelShuffle(2)

    def forward(self, x):
        skip = torch.relu(self.down(x))
        up = self.up(torch.relu(self.deep(skip)))
        return self.shuffle(self.last(self.norm(self.join(torch.cat([skip, up], 1)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 1)
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x):
        y = torch.relu(self.stem(x))
        return self.head(y + self.body(y))


class Attention(nn.Module):
    """Heads by views of numbers that the module holds, products spelled out."""

    def __init__(self):
        super().__init__()
        self.heads, self.width, self.inner = 4, 8, 32
        self.q, self.k, self.v = (nn.Linear(24, 32) for _ in range(3))
        self.out = nn.Linear(32, 24)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, self.width).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        weights = (q @ k.transpose(-1, -2) * self.width**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, self.inner))


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(24, 96), nn.Linear(32, 24)
        self.norm, self.wide, self.back = nn.LayerNorm(24), nn.Linear(24, 64), nn.Linear(64, 24)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2)
        x = x + self.out(y.reshape(batch, length, -1))
        return x + self.back(F.gelu(self.wide(self.norm(x))))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = (
            nn.Conv1d(3, 32, 3),
            nn.Conv1d(16, 24, 3),
            nn.Conv1d(12, 4, 1),
        )

    def forward(self, x):
        left, right = self.two(F.glu(self.one(x), 1)).chunk(2, 1)
        return self.last(left * torch.sigmoid(right))


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=3)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = torch.relu(self.grouped(self.first(x)))
        count, channels, *sides = x.shape
        x = x.view(count, 3, channels // 3, *sides).transpose(1, 2)
        return self.last(x.reshape(count, channels, *sides))


class Recurrent(nn.Module):
    """Two directions, states made in the code, a cell in a loop."""

    def __init__(self):
        super().__init__()
        self.units = 12
        self.lstm = nn.LSTM(5, 12, 2, bidirectional=True)
        self.gru = nn.GRU(24, 10)
        self.cell, self.cell_units = nn.LSTMCell(10, 9), 9
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        zeros = torch.zeros(4, x.shape[1], self.units)
        y, _ = self.lstm(x, (zeros, zeros))
        y, _ = self.gru(y)
        h = c = torch.zeros(x.shape[1], self.cell_units)
        for step in y.unbind(0):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.Flatten()
        )
        self.wide, self.last = nn.Linear(128, 20), nn.Linear(20, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.wide(self.layers(x))))


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(6, 8 * 4), nn.BatchNorm1d(32), nn.Unflatten(1, (8, 2, 2))
        )
        self.up = nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2)
        self.last = nn.ConvTranspose2d(6, 1, 3, 2, 1, 1)

    def forward(self, z):
        return torch.tanh(self.last(F.leaky_relu(self.up(self.project(z)), 0.2)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(20, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.mix(self.embedding(tokens))))


IMAGE = (2, 3, 8, 8)
CASES = {
    "squeeze and excite, depthwise": (SqueezeExcite, IMAGE, {"first": 16, "squeeze": 4}),
    "u-net, group norm": (UNet, IMAGE, {"down": 8, "deep": 16, "up": 8, "join": 4}),
    "residual, batch norm": (Residual, IMAGE, {"stem.0": 8, "body.0": 6}),
    "attention, spelled out": (Attention, (2, 7, 24), {"q": 4}),
    "attention, fused": (FusedAttention, (2, 7, 24), {"qkv": 4, "wide": 64}),
    "gated halves": (Gated, (2, 3, 9), {"one": 16, "two": 12}),
    "groups and a shuffle": (Shuffled, (2, 3, 6, 6), {"first": 8, "grouped": 8}),
    "lstm, gru, cells": (
        Recurrent,
        (4, 2, 5),
        {"lstm": 12, "gru": 10, "cell": 9},
    ),
    "flatten": (Flat, (2, 1, 14, 14), {"layers.0": 6, "layers.3": 8, "wide": 20}),
    "transposed, grouped": (Drawn, (2, 6), {"project.0": 4, "up": 3}),
    "tied weights": (Tied, (2, 5), {"head": 12}),
}


def made(name):
    kind, shape, widths = CASES[name]
    torch.manual_seed(0)
    module = kind().eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    inputs = [torch.randint(20, shape) if kind is Tied else torch.randn(shape)]
    return module, inputs, widths


@pytest.mark.parametrize("name", CASES)
def test_every_layer_that_can_be_pruned_is_found(name):
    module, inputs, widths = made(name)
    found = find_units(module, inputs)
    layers = {each.name.rpartition(".")[0]: len(each.units) for each in found.families}
    assert layers == widths, found.kept


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("every", [2, 3])
def test_without_units_it_equals_the_dense_module_with_zeros(name, every):
    module, inputs, _ = made(name)
    found = find_units(module, inputs)
    units = [unit for family in found.families for unit in family.units[::every]]
    smaller = found.without(units)
    assert sum(p.numel() for p in smaller.parameters()) < sum(
        p.numel() for p in module.parameters()
    )
    with torch.no_grad():
        torch.testing.assert_close(smaller(*inputs), mask(module, units)(*inputs))
        assert not torch.allclose(smaller(*inputs), module(*inputs))
