"""ASTRA and torch-radon in our geometry: with stand-ins that know the packages' conventions and nothing of ours, and
with the real packages where they are installed."""

import sys
import types

import numpy as np
import pytest
import torch

from pnp_lofi.operators.ct_adapters import AstraRadon, TorchRadon
from pnp_lofi.operators.radon import Radon


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def joseph(point, direction, xs, ys):
    """One ray's weights on pixels at (xs[column], ys[row]), by np.interp of each pixel's unit image."""
    weights = np.zeros((len(ys), len(xs)))
    steep = abs(direction[1]) >= abs(direction[0])  # from row to row
    if not steep:
        return joseph(point[::-1], direction[::-1], ys, xs).T
    length = np.hypot(*direction) / abs(direction[1])
    for row, y in enumerate(ys):
        x = point[0] + (y - point[1]) / direction[1] * direction[0]
        for column in range(len(xs)):
            weights[row, column] = length * max(0.0, 1 - abs(xs[column] - x))
    return weights


class FakeOpTomo:
    """A matrix in ASTRA's conventions: geom_2vec's vectors, rows of the volume from max y down."""

    def __init__(self, number):
        kind, geometry, volume = FAKE_PROJECTORS[number]
        assert kind == "linear"
        rows, columns, min_x, max_x, min_y, max_y = volume
        assert (max_x - min_x, max_y - min_y) == pytest.approx((columns, rows))
        xs = min_x + np.arange(columns) + 0.5
        ys = max_y - np.arange(rows) - 0.5
        self.vshape = (rows, columns)
        if geometry[0] == "parallel":
            _, width, count, angles = geometry
            zero = np.zeros(len(angles))
            vectors = [np.sin(angles), -np.cos(angles), zero, zero, np.cos(angles) * width, np.sin(angles) * width]
            vectors = np.stack(vectors, 1)
        else:
            _, count, vectors = geometry
        self.sshape = (len(vectors), count)
        self.matrix = np.stack(
            [
                joseph(v[2:4] + (k - (count - 1) / 2) * v[4:6], v[:2], xs, ys).ravel()
                for v in vectors
                for k in range(count)
            ]
        )

    def FP(self, v):
        assert v.shape == self.vshape and v.dtype == np.float32 and v.flags["C_CONTIGUOUS"]
        return (self.matrix @ v.ravel()).reshape(self.sshape).astype(np.float32)

    def BP(self, s):
        assert s.shape == self.sshape and s.dtype == np.float32 and s.flags["C_CONTIGUOUS"]
        return (self.matrix.T @ s.ravel()).reshape(self.vshape).astype(np.float32)


FAKE_PROJECTORS = {}


@pytest.fixture
def astra(monkeypatch):
    FAKE_PROJECTORS.clear()
    module = types.ModuleType("astra")

    def create_projector(kind, geometry, volume):
        FAKE_PROJECTORS[len(FAKE_PROJECTORS) + 1] = (kind, geometry, volume)
        return len(FAKE_PROJECTORS)

    module.create_vol_geom = lambda *numbers: numbers
    module.create_proj_geom = lambda *parts: parts
    module.create_projector = create_projector
    module.projector = types.SimpleNamespace(delete=FAKE_PROJECTORS.pop)
    module.OpTomo = FakeOpTomo
    monkeypatch.setitem(sys.modules, "astra", module)


class FakeTorchRadon:
    """Pixels (column - c, row - c) with y down, rays x cos a + y sin a = s at the *negated* angles, as version 1 does;
    version 2 turns a vertical ray by the angle instead. Backprojection interpolates between detectors."""

    def __init__(self, shape, angles, count, spacing, turned):
        xs, ys = np.arange(shape[1]) - (shape[1] - 1) / 2, np.arange(shape[0]) - (shape[0] - 1) / 2
        self.shape, self.sino = shape, (len(angles), count)
        places = (np.arange(count) - (count - 1) / 2) * spacing
        forward, back = [], []
        for angle in np.asarray(angles, dtype=np.float64):
            if turned:
                across, along = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
            else:
                across, along = (np.cos(-angle), np.sin(-angle)), (-np.sin(-angle), np.cos(-angle))
            seen = np.add.outer(ys * across[1], xs * across[0])
            for place in places:
                forward.append(joseph((place * across[0], place * across[1]), along, xs, ys).ravel())
                back.append(np.clip(1 - abs(seen - place) / spacing, 0, None).ravel() / spacing)
        self.matrix, self.smear = (torch.tensor(np.stack(rows), dtype=torch.float32) for rows in (forward, back))

    def forward(self, x):
        assert x.dtype == torch.float32
        return (x.flatten(-2) @ self.matrix.T).unflatten(-1, self.sino)

    def backprojection(self, y):
        assert y.dtype == torch.float32
        return (y.flatten(-2) @ self.smear).unflatten(-1, self.shape)

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle 'TextureCache' object")


@pytest.fixture(params=[1, 2])
def torch_radon(monkeypatch, request):
    module = types.ModuleType("torch_radon")

    def version_1(resolution, angles, det_count=-1, det_spacing=1.0, clip_to_circle=False):
        return FakeTorchRadon((resolution, resolution), angles, det_count, det_spacing, turned=False)

    def version_2(det_count, angles, det_spacing=1.0, volume=None):
        return FakeTorchRadon(volume, angles, det_count, det_spacing, turned=True)

    if request.param == 1:
        module.Radon = version_1
    else:
        module.Radon, module.ParallelBeam = version_1, version_2
    monkeypatch.setitem(sys.modules, "torch_radon", module)
    return request.param


def views(count):
    return 7 * torch.rand(count, dtype=torch.float64) - 3


ASTRA = {
    "square": lambda: Radon((8, 8), views(5)),
    "rectangle": lambda: Radon((7, 10), views(5), 9, spacing=1.4, pixel_size=0.3),
    "offset and centre": lambda: Radon((7, 10), views(5), offset=0.6, centre=(2.2, 6.0), pixel_size=2.0),
}


def same(got, expected, tolerance=2e-6):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert float((got - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("name", ASTRA)
def test_astra_projects_as_we_do(astra, name):
    radon = ASTRA[name]()
    op = AstraRadon(radon)
    assert op.matched
    x, y = torch.randn(2, 3, *radon.shape), torch.randn(2, 3, *radon.data_shape[2:])
    same(op.A(x), radon.A(x))
    same(op.A_adjoint(y), radon.A_adjoint(y))
    same(op.A(x.double()), radon.A(x.double()))
    assert float(op.adjointness_test(x)) < 1e-5


def test_an_adapter_solves_and_filters(astra):
    radon = Radon((8, 8), 12, sigma=0.1)
    op = AstraRadon(radon)
    y = radon.A(torch.rand(1, 1, 8, 8))
    assert op.sigma == 0.1 and op(torch.zeros(1, 1, 8, 8)).std() > 0.05
    same(op.fbp(y), radon.fbp(y))
    same(op.prox_l2(0.0, y, 1.0), radon.prox_l2(0.0, y, 1.0), 1e-4)
    assert op.estimate_noise(y) == radon.estimate_noise(y)


def test_astra_frees_its_projector_with_the_last_copy(astra):
    op = AstraRadon(Radon((4, 4), 2))
    copy = op.clone()
    del op
    assert len(FAKE_PROJECTORS) == 1
    copy.A(torch.rand(1, 1, 4, 4))
    del copy
    assert not FAKE_PROJECTORS


def test_astra_on_a_gpu_says_that_it_is_not_matched(astra, monkeypatch):
    monkeypatch.setattr(sys.modules["astra"], "OpTomo", lambda number: None)
    assert not AstraRadon(Radon((4, 4), 2), "cuda").matched


def test_torch_radon_projects_as_we_do(torch_radon):
    for radon in (Radon((16, 16), views(5), pixel_size=0.5), Radon((16, 16), views(4), 11, spacing=1.7)):
        op = TorchRadon(radon)
        x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, *radon.data_shape[2:])
        same(op.A(x), radon.A(x))
        assert not op.matched
        same(op.A_adjoint(y), radon.A_adjoint(y), 0.5)  # noise: as far away as it gets
        same(op.clone().A(x.double()), radon.A(x.double()))


def test_torch_radon_refuses_what_it_does_not_have(torch_radon):
    with pytest.raises(ValueError, match="middle"):
        TorchRadon(Radon((16, 16), 3, offset=0.5))
    with pytest.raises(ValueError, match="middle"):
        TorchRadon(Radon((16, 16), 3, centre=(8, 8)))
    if torch_radon == 1:
        with pytest.raises(ValueError, match="multiple of 16"):
            TorchRadon(Radon((16, 32), 3))
    else:
        radon = Radon((6, 9), views(3))
        x = torch.randn(1, 1, 6, 9)
        same(TorchRadon(radon).A(x), radon.A(x))


@pytest.mark.parametrize(("adapter", "package"), [(AstraRadon, "astra"), (TorchRadon, "torch_radon")])
def test_a_missing_package_is_named(monkeypatch, adapter, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="this adapter needs"):
        adapter(Radon((16, 16), 3))


@pytest.mark.parametrize("name", ASTRA)
def test_the_real_astra(name):
    pytest.importorskip("astra")
    radon = ASTRA[name]()
    op = AstraRadon(radon)
    x, y = torch.randn(2, 1, *radon.shape), torch.randn(2, 1, *radon.data_shape[2:])
    same(op.A(x), radon.A(x), 1e-3)
    same(op.A_adjoint(y), radon.A_adjoint(y), 1e-3)


@pytest.mark.gpu
def test_the_real_torch_radon():
    pytest.importorskip("torch_radon")
    radon = Radon((64, 64), 40).cuda()
    x = torch.nn.functional.avg_pool2d(torch.rand(4, 1, 64, 64, device="cuda"), 9, 1, 4)
    same(TorchRadon(radon).A(x), radon.A(x), 2e-2)
