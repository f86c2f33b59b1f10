import copy

import pytest
import torch
from torch import nn

from aigc_compress.passes.qat import add_fake_quant, without_fake_quant


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, 2),
        nn.Flatten(),
        nn.Linear(4 * 12 * 12, 5),
    )


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_lie_on_the_grid_of_their_channel(bits):
    module = net()
    before = module[0].weight.detach().clone()
    assert add_fake_quant(module, weight_bits=bits) == 3
    for layer, axis in ((module[0], 0), (module[3], 1), (module[5], 0)):
        original = layer.parametrizations.weight.original.detach()
        largest = original.abs().amax([d for d in range(original.ndim) if d != axis], keepdim=True)
        steps = layer.weight.detach() / (largest / (2 ** (bits - 1) - 1))
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert float(steps.abs().max()) == pytest.approx(2 ** (bits - 1) - 1, abs=1e-3)
        assert (layer.weight - original).abs().max() > 0
    torch.testing.assert_close(module[0].parametrizations.weight.original, before)


def test_inputs_are_rounded_to_their_range_and_gradients_pass_inside_it():
    layer = nn.Sequential(nn.Linear(3, 2))
    add_fake_quant(layer, weight_bits=8)
    layer.train()
    layer(torch.tensor([[-1.0, 0.3, 2.0]]))
    layer.eval()
    x = torch.tensor([[-3.0, 0.301, 1.0]], requires_grad=True)
    rounded = layer[0].input_range(x)
    scale = 3.0 / 255
    assert float(rounded.detach()[0, 0]) == pytest.approx(-1.0, abs=scale)
    assert float(rounded.detach()[0, 1]) == pytest.approx(0.301, abs=scale / 2 + 1e-6)
    assert float(rounded.detach()[0, 1]) != pytest.approx(0.301, abs=1e-5)
    rounded.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0]]


def test_a_trained_module_comes_back_as_it_was_with_its_float_weights():
    module = net()
    plain = copy.deepcopy(module)
    add_fake_quant(module, weight_bits=8)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        loss = module(torch.randn(4, 1, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    back = without_fake_quant(module)
    assert set(back.state_dict()) == set(plain.state_dict())
    original = module[0].parametrizations.weight.original
    torch.testing.assert_close(back[0].weight, original)
    assert not torch.equal(back[0].weight, plain[0].weight)
    plain.load_state_dict(back.state_dict())
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(x), plain.eval()(x))
        rounded = module.eval()(x)
        assert not torch.equal(rounded, plain(x))
        torch.testing.assert_close(rounded, plain(x), atol=0.1, rtol=0.1)
