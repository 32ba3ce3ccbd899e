"""Every kind of LoFi, and one pixel of any of them by hand."""

import math

import pytest
import torch

from pnp_lofi import LoFi
from pnp_lofi.mlp import MLP

TINY = {"rays": 3, "rings": 4, "radius": 2.7, "hidden": (8,), "features": 5, "mixer": (7,)}
VARIANTS = {
    "plain": {},
    "single": {"head": "single"},
    "single, deep": {"head": "single", "hidden": (9, 6, 5)},
    "no hidden layers": {"hidden": (), "mixer": ()},
    "one ray": {"rays": 1},
    "one ring": {"rings": 1},
    "square": {"layout": "square"},
    "random": {"layout": "random"},
    "scaled": {"learned_scale": True},
    "not residual": {"residual": False},
    "not centred": {"centred": False},
    "not equivariant": {"equivariant": False},
    "plain network": {"equivariant": False, "centred": False, "residual": False},
    "ccpg": {"ccpg": 1},
    "ccpg twice, single, scaled": {"ccpg": 2, "head": "single", "learned_scale": True},
    "ccpg thrice": {"ccpg": 3},
    "ccpg, plain network": {"ccpg": 1, "equivariant": False, "centred": False, "residual": False},
    "ccpg, rgb": {"ccpg": 1, "in_channels": 3},
    "inr": {"inr": True},
    "inr, single": {"inr": True, "head": "single", "residual": False},
    "inr and ccpg": {"inr": True, "ccpg": 1},
    "rgb": {"in_channels": 3},
    "rgb, single": {"in_channels": 3, "head": "single"},
    "rgb to grey": {"in_channels": 3, "out_channels": 1},
    "three to two": {"in_channels": 3, "out_channels": 2, "head": "single"},
    "grey to rgb": {"in_channels": 1, "out_channels": 3, "residual": False},
    "filter": {"filter": {"kind": "spectral", "size": 6}, "ccpg": 1},
}
EVERY = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(seed=1, **config):
    """Float64, tiny, random weights; the patches of CCPG and INR move by a pixel or so."""
    torch.manual_seed(seed)
    model = LoFi(**(TINY | config))
    with torch.no_grad():
        model.geometry.offsets.add_(0.1 * torch.randn(model.geometry.offsets.shape))
        if model.geometry.scale is not None:
            model.geometry.scale.fill_(0.8)
        if model.filter is not None:
            model.filter.response.add_(0.2 * torch.randn(model.filter.response.shape))
        for net in model.ccpg.networks if model.ccpg is not None else ():
            net.weights[-1].mul_(8)
    return model.double().eval()


def level(model):
    return 0.2 if model.equivariant else None


# --- one pixel by hand: Python loops, numpy's reflection, nn.functional.linear


def fold(i, n):
    i = abs(i) % (2 * (n - 1)) if n > 1 else 0
    return min(i, 2 * (n - 1) - i) if n > 1 else 0


def cubic(t):
    t = abs(t)
    return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def read(q, y, x):
    """(C, H, W) at one position [pixel] -> (C,)."""
    found = torch.zeros(len(q), dtype=q.dtype)
    for i in range(math.floor(y) - 1, math.floor(y) + 3):
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            found += cubic(y - i) * cubic(x - j) * q[:, fold(i, q.shape[1]), fold(j, q.shape[2])]
    return found


def layers(h, weights, biases):
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.nn.functional.linear(h.relu() if k else h, weight.T, bias)
    return h


def by_hand(model, q, coordinate, sigma):
    """f (C_out,) and the positions (K, 2) [pixel] that its patch reads, of one image (C, H, W) at one coordinate."""
    sigma, size = sigma or 1.0, torch.tensor(q.shape[1:], dtype=q.dtype)
    seen = q if model.filter is None else model.filter(q[None])[0]
    if model.inr is not None:
        coordinate = layers(coordinate - 0.5, model.inr.weights, model.inr.biases) + 0.5
    point = coordinate * size - 0.5
    scale = 1.0 if model.geometry.scale is None else model.geometry.scale
    offsets = model.geometry.offsets.reshape(-1, 2) * scale

    def patch():
        found = torch.stack([read(seen, *(point + d).tolist()) for d in offsets], 1)  # (C, K)
        found = found - found.mean(1, keepdim=True) if model.centred else found
        return found / sigma

    for net in model.ccpg.networks if model.ccpg is not None else ():
        offsets = layers(patch().flatten(), net.weights, net.biases).reshape(-1, 2) * scale
    p = patch()
    if isinstance(model.mlp, MLP):
        out = layers(p.flatten(), model.mlp.weights, model.mlp.biases)
    else:
        rays = p.reshape(len(p), model.rays, model.rings)
        net = model.mlp
        features = [
            layers(rays[:, m].flatten(), [w[m] for w in net.ray_weights], [b[m, 0] for b in net.ray_biases])
            for m in range(model.rays)
        ]
        out = layers(torch.cat(features), net.mixer_weights, net.mixer_biases)
    out = sigma * out
    if model.residual:
        out = out + read(q[: model.out_channels], *point.tolist())
    return out, point + offsets
