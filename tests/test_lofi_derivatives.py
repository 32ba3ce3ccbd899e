"""Derivatives of LoFi: in the coordinates, twice, and of every part by gradcheck."""

import pytest
import torch
from lofi_by_hand import image, level, network

from pnp_lofi import LoFi
from pnp_lofi.ccpg import CCPG
from pnp_lofi.mlp import MLP
from pnp_lofi.multimlp import MultiMLP


@pytest.mark.parametrize("config", [{}, {"head": "single"}, {"ccpg": 1}, {"in_channels": 3, "out_channels": 1},
                                    {"inr": True}, {"official": True, "centred": False, "equivariant": False}],
                         ids=str)  # fmt: skip
def test_first_and_second_derivatives_in_the_coordinates(config):
    """Autograd against central differences, at points away from pixel centres and kinks."""
    model = network(**config)
    if model.inr is not None:
        model.inr = MLP([2, 16, 2]).double()  # 3 x 256 units have a kink everywhere
    q, sigma = image(1, model.in_channels, 8, 9), level(model)

    def f(x):
        return model.at(q, x[None], sigma)[0, 0, 0]

    axes, checked = torch.eye(2, dtype=q.dtype), 0
    for x in 0.1 + 0.8 * image(6, 2, seed=3):
        gradient = torch.autograd.functional.jacobian(f, x)
        hessian = torch.autograd.functional.hessian(f, x)
        with torch.no_grad():
            h = 1e-6
            first = torch.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in axes])
            torch.testing.assert_close(gradient, first, rtol=1e-6, atol=1e-6)
            h = 1e-5
            second = torch.stack([
                torch.stack([
                    (f(x + h * d + h * e) - f(x + h * d - h * e) - f(x - h * d + h * e) + f(x - h * d - h * e))
                    / (4 * h * h) for e in axes
                ]) for d in axes
            ])  # fmt: skip
        torch.testing.assert_close(hessian, second, rtol=1e-4, atol=1e-3 * float(hessian.abs().max()))
        torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-9 * float(hessian.abs().max()))
        checked += float(hessian.abs().max()) > 1
    assert checked >= 5


@pytest.mark.parametrize("config", [{}, {"ccpg": 1}], ids=str)
def test_second_derivatives_reach_the_weights(config):
    """A loss on the gradient (Eikonal, total variation of the field) can be trained."""
    model, q = network(**config), image(1, 1, 8, 8)
    coords = (0.2 + 0.6 * image(5, 2)).requires_grad_()
    (slope,) = torch.autograd.grad(model.at(q, coords, 0.2).sum(), coords, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.mlp.ray_weights)
    assert bool(model.geometry.offsets.grad.any())


# --- gradcheck, part by part


def check(model, names, call):
    """gradcheck of ``call`` with respect to the named parameters."""
    values = [model.get_parameter(name) for name in names]

    def replaced(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), call)

    assert torch.autograd.gradcheck(replaced, values)


@pytest.mark.parametrize("config", [{}, {"layout": "square"}, {"learned_scale": True}], ids=str)
def test_gradcheck_of_the_geometry_through_the_stencil(config):
    model = network(**({"hidden": (4,), "features": 2, "mixer": (3,)} | config))
    names = ["geometry.offsets"] + ["geometry.scale"] * bool(config.get("learned_scale"))
    check(model, names, (image(1, 1, 4, 3), 0.5))


class At(torch.nn.Module):
    """``at`` as a module's forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args):
        return self.model.at(*args)


@pytest.mark.parametrize("config", [{}, {"learned_scale": True}, {"inr": True}], ids=str)
def test_gradcheck_of_the_geometry_through_the_gather(config):
    model = network(**({"hidden": (4,), "features": 2, "mixer": (3,)} | config))
    names = ["model.geometry.offsets"] + ["model.geometry.scale"] * bool(config.get("learned_scale"))
    check(At(model), names, (image(1, 1, 5, 4), image(3, 2), 0.5))


def test_gradcheck_of_ccpg():
    model = network(ccpg=2, rays=2, rings=2, hidden=(4,), features=2, mixer=(3,))
    model.ccpg = CCPG(4, model.geometry.offsets, 2, width=3).double()
    names = [name for name, _ in model.named_parameters() if name.startswith(("ccpg.", "geometry."))]
    check(model, names, (image(1, 1, 3, 3), 0.5))


def test_gradcheck_of_the_inr():
    model = network(inr=True, rays=2, rings=2, hidden=(4,), features=2, mixer=(3,))
    model.inr = MLP([2, 5, 2]).double()
    check(model, [name for name, _ in model.named_parameters() if name.startswith("inr.")], (image(1, 1, 4, 4), 0.5))


@pytest.mark.parametrize("kind", ["spectral", "spatial"])
def test_gradcheck_of_a_filter_within(kind):
    size = {"spectral": 4, "spatial": 3}[kind]
    model = LoFi(rays=2, rings=2, radius=1.3, hidden=(4,), features=2, mixer=(3,),
                 filter={"kind": kind, "size": size}).double()  # fmt: skip
    check(model, [{"spectral": "filter.response", "spatial": "filter.kernels"}[kind]], (image(1, 1, 3, 4), 0.5))


@pytest.mark.parametrize("module", [MultiMLP(2, 3, (4, 3), 2, (3,), 2), MLP([6, 4, 3, 2])], ids=["multi", "single"])
def test_gradcheck_of_the_networks(module):
    module = module.double()
    x = (image(2, 4, 3) if isinstance(module, MultiMLP) else image(4, 6)) - 0.5
    check(module, [name for name, _ in module.named_parameters()], (x,))
    assert torch.autograd.gradcheck(module, x.requires_grad_())


# --- what cannot be
