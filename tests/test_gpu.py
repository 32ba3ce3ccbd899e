"""The networks on a GPU give what they give on the CPU."""

import pytest
import torch

from pnp_lofi import LoFi, SharedLoFi
from pnp_lofi.examples import PairCrops, cached, normal
from pnp_lofi.learner import Learner
from pnp_lofi.train import TrainSettings

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


def pairs():
    g = torch.Generator().manual_seed(2)
    return [(torch.rand(1, 30, 34, generator=g), torch.rand(1, 30, 34, generator=g)) for _ in range(5)]


@pytest.mark.parametrize("kept", [False, True])
def test_training_steps_are_those_of_the_cpu(kept):
    """Batches drawn ahead, of images on the processor or kept on the GPU: no noise, which a GPU draws itself."""
    settings, learners = TrainSettings(steps=6, pixels=40, draws=2), []
    for device in (torch.device("cpu"), torch.device("cuda")):
        torch.manual_seed(0)
        model = LoFi(**SMALL, equivariant=False).to(device)
        images = cached([torch.cat(pair) for pair in pairs()], device) if kept else [torch.cat(p) for p in pairs()]
        source = PairCrops([(x[:1], x[1:]) for x in images], 20, 4)
        learners.append(Learner(model, source, settings, {}))
    for _ in range(6):
        (loss, _), (expected, _) = learners[1].advance(), learners[0].advance()
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_noise_of_a_gpu_is_seeded_and_normal():
    x = torch.zeros(4, 1, 200, 200, device="cuda")
    a, b = (normal(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert a.is_cuda and torch.equal(a, b)
    assert abs(float(a.mean())) < 0.01 and abs(float(a.std()) - 1) < 0.01
