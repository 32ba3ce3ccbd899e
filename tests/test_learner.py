"""What a training step is made of: draws, parts, running means, processes, pairs, logs."""

import math
import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_train import SETTINGS, network, noisy

from pnp_lofi import LoFi
from pnp_lofi.baselines import SIZES, Baseline
from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.examples import Crops, Example, Noisy, PairCrops
from pnp_lofi.learner import Batches, Learner, seeded
from pnp_lofi.train import train
from pnp_lofi.training_log import read_log


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def four(seed=0):
    return Noisy(Crops([rand(1, 40, 44, seed=seed)], 24, 4), 0.05, 0.2)


def test_first_steps_are_those_of_a_loop_by_hand():
    """Two draws of pixels for each batch, L2, weight, Adam and the running mean, written out."""
    settings = replace(SETTINGS, steps=4, draws=2, loss="l2", ema=0.5, pixels=50, schedule="constant")
    model, reference = network(), network()
    learner = Learner(model, four(), settings, {})
    adam = torch.optim.Adam(reference.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    mean = weights(reference)
    for step in range(4):
        learner.advance()
        if step % 2 == 0:
            q, x, sigma = four()(seeded(settings.seed, "batch", step // 2))
        index = torch.randint(24 * 24, (4, 50), generator=seeded(settings.seed, "pixels", step))
        whole = reference(q, sigma)
        error = (whole - x).flatten(1).gather(1, index)
        loss = (error.square().mean(1) / sigma**0.7).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        keep = min(0.5, (step + 1) / (step + 11))
        mean = keep * mean + (1 - keep) * weights(reference)
    torch.testing.assert_close(weights(model), weights(reference), rtol=1e-4, atol=1e-6)
    parts = [learner.weights()[name].flatten() for name, _ in model.named_parameters()]
    torch.testing.assert_close(torch.cat(parts), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_step_add_up(parts):
    whole, divided = network(), network()
    a, b = (Learner(m, four(), replace(SETTINGS, accumulate=k), {}) for m, k in ((whole, 1), (divided, parts)))
    for _ in range(3):
        first, second = a.advance(), b.advance()
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights(whole), weights(divided), rtol=1e-4, atol=1e-6)


def process(rank, world, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = network()
    figures = train(model, four(), replace(SETTINGS, steps=12), folder / "many.safetensors", progress=False)
    torch.save((weights(model), figures), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    model = network()
    figures = train(model, four(), replace(SETTINGS, steps=12), tmp_path / "one.safetensors", progress=False)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(process, (2, port, tmp_path), nprocs=2)
    for rank in range(2):
        found, told = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, weights(model), rtol=1e-4, atol=1e-5)
        assert told["loss"] == pytest.approx(figures["loss"], rel=1e-5)
    assert (tmp_path / "many.safetensors").is_file()


def test_more_processes_or_parts_than_objects_are_refused():
    with pytest.raises(ValueError, match="4 objects a step do not go round 1 processes in 8 parts"):
        Learner(network(), four(), replace(SETTINGS, accumulate=8), {}).advance()


def test_log_best_and_resume(tmp_path):
    """The validation's best weights are kept, and the log of a broken-off run is that of a whole one."""
    scores, drawn = iter([1.0, 5.0, 2.0, 3.0] * 3), []
    kept = []

    def validate(model):
        kept.append(weights(model))
        return {"score": next(scores)}

    options = {"validate_every": 20, "progress": False, "picture": lambda m, path: drawn.append(path)}
    settings = replace(SETTINGS, steps=80)
    train(network(), noisy(), settings, tmp_path / "a.safetensors", validate=validate, **options)
    best, header = load_checkpoint(tmp_path / "a.safetensors.best")
    torch.testing.assert_close(weights(best), kept[1])
    assert header["metrics"]["score"] == 5.0 and header["metrics"]["step"] == 40
    assert drawn == [tmp_path / "a.safetensors.png"] * 4
    log = read_log(tmp_path / "a.safetensors.csv")
    assert [row["step"] for row in log] == [20, 40, 60, 80]
    assert [row["score"] for row in log] == [1, 5, 2, 3]

    def breaks(generator, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 55:
            raise RuntimeError
        return noisy()(generator)

    out = tmp_path / "b.safetensors"
    with pytest.raises(RuntimeError):
        train(network(), breaks, settings, out, validate=validate, keep_every=25, **options)
    train(network(), noisy(), settings, out, validate=validate, resume=True, **options)
    again = read_log(tmp_path / "b.safetensors.csv")
    assert [(row["step"], row["loss"], row["psnr"]) for row in again] == [
        (row["step"], row["loss"], row["psnr"]) for row in log
    ]


def test_resume_in_the_middle_of_draws_and_with_a_mean(tmp_path):
    settings = replace(SETTINGS, steps=11, draws=3, ema=0.9)
    whole = Learner(network(), four(), settings, {})
    for _ in range(11):
        whole.advance()
    part = Learner(network(), four(), settings, {})
    for _ in range(7):
        part.advance()
    part.save(tmp_path / "state")
    again = Learner(network(), four(), settings, {})
    again.load(tmp_path / "state")
    for _ in range(4):
        again.advance()
    assert torch.equal(weights(whole.model), weights(again.model))
    assert all(torch.equal(v, again.mean[k]) for k, v in whole.mean.items())


def test_batches_drawn_ahead_are_those_drawn_in_turn():
    """In the order of training, after a leap, and with an error at the batch that has it."""
    one, ahead = Batches(four(), 3), Batches(four(), 3, ahead=True)
    for number in (0, 0, 1, 2, 7, 7, 8, 3):
        assert all(torch.equal(a, b) for a, b in zip(one[number], ahead[number], strict=True))
    assert not torch.equal(one[0].q, one[1].q)
    assert not torch.equal(one[0].q, Batches(four(), 4)[0].q)

    def broken(generator):
        raise RuntimeError("unreadable")

    with pytest.raises(RuntimeError, match="unreadable"):
        Batches(broken, 0, ahead=True)[0]


def test_pairs_are_cut_alike():
    q, x = rand(2, 30, 34), rand(1, 30, 34, seed=1)
    joined = torch.cat([q, x])
    found = PairCrops([(q, x)], 16, 6)(torch.Generator().manual_seed(0))
    assert found.q.shape == (6, 2, 16, 16) and found.x.shape == (6, 1, 16, 16) and found.sigma is None
    for k in range(6):
        crop = torch.cat([found.q[k], found.x[k]])
        views = joined.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
        turned = [c for t in range(4) for c in (crop.rot90(t, (1, 2)), crop.flip(-1).rot90(t, (1, 2)))]
        assert any(bool((views == c).flatten(1).all(1).any()) for c in turned)
    whole = PairCrops([(q, x)], None, 2)(torch.Generator().manual_seed(0))
    assert torch.equal(whole.q[0], q) and torch.equal(whole.x[1], x)
    with pytest.raises(ValueError, match=r"pair 0: .* sizes must agree"):
        PairCrops([(q, x[:, 1:])], 16, 2)
    with pytest.raises(ValueError, match="one number of channels"):
        Crops([q, x], 16, 2)


def test_a_plain_lofi_learns_pairs(tmp_path):
    """x -> 1 - x, from two channels of which one is noise."""
    x = rand(1, 40, 40).cumsum(-1) / 20
    pairs = [(torch.cat([x, rand(1, 40, 40, seed=3)]), 1 - x)]
    torch.manual_seed(0)
    model = LoFi(2, 1, rays=3, rings=3, radius=2.0, hidden=(16,), features=8, mixer=(16,), residual=False,
                 centred=False, equivariant=False)  # fmt: skip
    settings = replace(SETTINGS, steps=300, lr=1e-2)
    figures = train(model, PairCrops(pairs, 24, 4), settings, tmp_path / "a.safetensors", progress=False)
    assert figures["psnr"] > 25


@pytest.mark.parametrize("name", SIZES)
def test_baselines_take_a_step_and_are_kept(name, tmp_path):
    torch.manual_seed(0)
    model = Baseline(name, 2, 1)
    assert 1e5 < sum(p.numel() for p in model.parameters()) < 3.5e5
    q = rand(2, 2, 32, 32)
    before = weights(model)
    out = tmp_path / "a.safetensors"
    train(model, lambda g: Example(q, q[:, :1]), replace(SETTINGS, steps=1), out, progress=False)
    assert not torch.equal(before, weights(model))
    again, header = load_checkpoint(out)
    assert isinstance(again, Baseline) and header["architecture"] == "Baseline"
    with torch.no_grad():
        torch.testing.assert_close(again(q), model(q))
    assert not math.isnan(header["metrics"]["loss"])


def test_unknown_baselines():
    with pytest.raises(ValueError, match="baselines are DnCNN, IRCNN"):
        Baseline("VGG")
