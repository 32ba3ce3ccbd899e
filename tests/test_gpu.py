"""The networks on a GPU give what they give on the CPU."""

import pytest
import torch

from pnp_lofi import LoFi, SharedLoFi

pytestmark = pytest.mark.gpu

SMALL = {"rays": 4, "rings": 5, "radius": 3.0, "hidden": (16,), "features": 8, "mixer": (16,)}
NETWORKS = {
    "plain": lambda: LoFi(**SMALL),
    "spectral": lambda: LoFi(**SMALL, filter={"kind": "spectral", "size": 16}),
    "ccpg": lambda: LoFi(**SMALL, ccpg=2),
    "single": lambda: LoFi(**SMALL, head="single"),
    "shared": lambda: SharedLoFi(window=5, filters=8, features=4, points=3, raw=5, hidden=(16,)),
}


def answers(model, q, level, coords, index):
    with torch.no_grad():
        return [
            model(q, level),
            model(q, level, shape=(11, 9)),
            model.at(q, coords, level),
            model.at_pixels(q, index, level),
        ]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_same_as_on_the_cpu(name, dtype, tolerance):
    torch.manual_seed(0)
    model, q = NETWORKS[name]().to(dtype), torch.rand(2, 1, 23, 30, dtype=dtype)
    level = 0.1 + torch.rand(2, 1, 23, 30, dtype=dtype)
    inputs = (q, level, torch.rand(2, 40, 2, dtype=dtype), torch.randint(23 * 30, (2, 17)))
    expected = answers(model, *inputs)
    model.cuda()
    for got, wanted in zip(answers(model, *(x.cuda() for x in inputs)), expected, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_same_gradients_as_on_the_cpu(name):
    def gradients(model, q, index):
        model.zero_grad()
        model.at_pixels(q, index, 0.2).square().sum().backward()
        return [p.grad.clone().cpu() for p in model.parameters()]

    torch.manual_seed(0)
    model, q, index = NETWORKS[name](), torch.rand(2, 1, 23, 30), torch.randint(23 * 30, (2, 17))
    expected = gradients(model, q, index)
    for got, wanted in zip(gradients(model.cuda(), q.cuda(), index.cuda()), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_bfloat16_is_close():
    torch.manual_seed(0)
    model, q = LoFi(**SMALL).cuda(), torch.rand(1, 1, 64, 64).cuda()
    with torch.no_grad():
        full, low = model(q, 0.2), model(q, 0.2, compute_dtype=torch.bfloat16)
    assert float((low - full).norm() / (full - q).norm()) < 0.03
