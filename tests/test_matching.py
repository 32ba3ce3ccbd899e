"""Non-local LoFi: its sums against loops over pixels, three ways in, equivariance and gradients."""

import numpy as np
import pytest
import torch

from pnp_lofi.checkpoint import load_checkpoint
from pnp_lofi.examples import Noisy
from pnp_lofi.learner import seeded
from pnp_lofi.matching import FAINT, LEAST, LOGARITHM, WIDTH, WIDTHS, Matching, NonLocalLoFi
from pnp_lofi.matching_training import Evidence, Mixing
from pnp_lofi.sampling import grid_coords
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.train import TrainSettings, train

LOCAL = {"window": 3, "filters": 4, "features": 2, "points": 3, "spacing": 1, "raw": 0, "hidden": (4,), "patch": 3}


def rand(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(channels=1, **more):
    torch.manual_seed(0)
    made = NonLocalLoFi(channels, **({"radius": 3, "alike": (1, 2), "mixing": (5,)} | LOCAL | more)).double().eval()
    for p in made.matching.parameters():
        torch.nn.init.normal_(p, 0, 0.3)
    return made


def by_loops(m, q, pilot, sigma, inside):
    """Matching at the middle of (C, n, n) arrays, as its formulae say; n = 2 margin + 1, sigma an (n, n) array."""
    radius, middle, wide = m.radius, q.shape[-1] // 2, np.where(sigma == 0, np.inf, sigma)

    def level(i, j, k, l):
        return max(np.sqrt((sigma[i, j] ** 2 + sigma[k, l] ** 2) / 2), 1e-9)

    def distance(box, i, j, k, l):
        each = [
            ((pilot[c, i + a, j + b] - pilot[c, k + a, l + b]) / level(i + a, j + b, k + a, l + b)) ** 2
            for c in range(len(q)) for a in box for b in box
        ]  # fmt: skip
        return np.mean(each)

    def found(box, i, j):
        """Units (WIDTHS + 1, C), sums of weights, and what the pilot varies by at a pixel."""
        total, weights = np.repeat(pilot[None, :, i, j], WIDTHS, 0), np.ones(WIDTHS)
        for k in range(i - radius, i + radius + 1):
            for l in range(j - radius, j + radius + 1):
                if (k, l) != (i, j):
                    w = np.exp(max(LEAST, -distance(box, i, j, k, l) / WIDTH)) ** 2 ** np.arange(WIDTHS)
                    weights += w * inside[k, l]
                    total += w[:, None] * q[:, k, l] * inside[k, l]
        unit = (np.vstack([q[:, i, j], total / weights[:, None]]) - pilot[:, i, j]) / wide[i, j]
        varies = (pilot[:, i, j] - np.mean([pilot[:, i + a, j + b] for a in box for b in box], 0)) / wide[i, j]
        return unit, weights, (varies**2).mean()

    units, seen = [], []
    for alike in m.alike:
        box = range(-alike, alike + 1)
        around = [found(box, middle + a, middle + b) for a in box for b in box]
        squares = np.mean([(unit**2).mean(1) for unit, _, _ in around], 0)
        unit, weights, _ = found(box, middle, middle)
        seen += [weights, squares + FAINT, [np.mean([v for _, _, v in around]) + FAINT]]
        units += list(unit[1:] if units else unit)
    mixed = m.mixer(torch.from_numpy(LOGARITHM * np.log(np.concatenate(seen)))[None]).detach().numpy()[0]
    return sigma[middle, middle] * mixed @ np.array(units)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("level", ["number", "map", "map with zeros"])
def test_matching_is_what_loops_over_pixels_find(channels, level):
    m = network(channels).matching
    n = 2 * m.margin + 1
    q, pilot = rand(1, channels, n, n), rand(1, channels, n, n, seed=1) / 3
    sigma = torch.full((1, 1, n, n), 0.2, dtype=torch.float64)
    if level != "number":
        sigma += 0.1 * rand(1, 1, n, n, seed=2)
    if level == "map with zeros":  # also where patches are compared
        sigma[..., : n // 2, :] = 0
    inside = torch.ones(n, n, dtype=torch.bool)
    inside[:5], inside[:, -4:] = False, False
    given = torch.tensor(0.2, dtype=torch.float64) if level == "number" else sigma
    answer = m(q, pilot, given, inside)[0, :, 0, 0]
    expected = by_loops(m, q[0].numpy(), pilot[0].numpy(), sigma[0, 0].numpy(), inside.numpy())
    torch.testing.assert_close(answer.detach(), torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_ways_in_agree_and_tiles_are_exact(channels):
    m, q = network(channels), rand(2, channels, 38, 35)
    whole = m(q, 0.1)
    with torch.no_grad():
        tiled = m(q, 0.1, chunk=97)
        torch.testing.assert_close(tiled, m(q, 0.1), rtol=0, atol=1e-14)
        torch.testing.assert_close(m(q, 0.1, max_memory=1.0), tiled, rtol=0, atol=1e-14)
    torch.testing.assert_close(whole.detach(), tiled, rtol=0, atol=1e-12)
    inner = m.interior(q, torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(inner, whole[..., m.reach : -m.reach, m.reach : -m.reach], rtol=0, atol=1e-12)
    level = torch.full((2, 1, 38, 35), 0.1, dtype=torch.float64)
    torch.testing.assert_close(m(q, level), whole, rtol=0, atol=1e-12)
    at = m.at(q, grid_coords((38, 35), dtype=torch.float64), 0.1)
    torch.testing.assert_close(at, whole.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)
    assert m(q, 0.1, shape=(44, 44)).shape == (2, channels, 44, 44)
    with pytest.raises(ValueError, match=f"reaches {m.reach} pixels"):
        m.interior(q[..., : 2 * m.reach], torch.tensor(0.1))


def test_equivariance_and_the_limit():
    m, q = network(), rand(1, 1, 24, 26)
    with torch.no_grad():
        torch.testing.assert_close(m(3 * q + 7, 0.3), 3 * m(q, 0.1) + 7, rtol=0, atol=1e-10)
        assert torch.equal(m(q, 0.0), q)
        assert float((m(q, 0.1, most=0.5) - q).abs().max()) <= 0.05 + 1e-12
        level = torch.full((1, 1, 24, 26), 0.1, dtype=torch.float64)
        level[..., :12, :] = 0
        assert torch.equal(m(q, level, most=8.0)[..., :12, :], q[..., :12, :])


@pytest.mark.parametrize("unit", [1e-28, 1e-20, 1.0, 1e22])
def test_levels_of_their_own_in_any_unit(unit):
    """A batch of two levels is two images, also where squares underflow or overflow."""
    m, q = network().float(), rand(2, 1, 24, 26).float()
    with torch.no_grad():
        expected = torch.cat([m(q[:1], 0.1), m(q[1:], 0.2)])
        found = m(unit * q, unit * torch.tensor([0.1, 0.2])) / unit
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_what_is_known_is_alike_only_to_what_looks_like_it():
    """Places without noise are no matches of what they do not look like."""
    m = Matching(radius=8, alike=(2,), hidden=(4,)).double()
    with torch.no_grad():
        m.mixer.biases[-1][-1] = 1  # the narrowest width alone
    pilot = torch.ones(1, 1, 2 * m.margin + 1, 2 * m.margin + 1, dtype=torch.float64)
    sigma, middle = torch.full_like(pilot, 0.1), m.margin
    pilot[..., : middle - 5, :], sigma[..., : middle - 5, :] = 9.0, 0.0
    assert float(m(pilot, pilot, sigma).detach().abs()) < 1e-9


@pytest.mark.parametrize("zeros", [False, True])
def test_gradients_are_those_of_differences(zeros):
    m = network()
    q = rand(1, 1, 2 * m.reach + 2, 2 * m.reach + 1).requires_grad_()
    level = torch.full_like(q, 0.3, requires_grad=False)
    level[..., : m.reach, :] = 0.0 if zeros else 0.2
    torch.autograd.gradcheck(lambda x: m(x, 0.3), q, fast_mode=True)
    torch.autograd.gradcheck(lambda x: m(x, level), q, fast_mode=True)


def test_a_repeated_pattern_is_seen_again_and_again():
    """What a local part cannot know: means over alike places lose the noise, those over unlike ones are not made."""
    m = Matching(radius=8, alike=(2,), hidden=(4,)).double()
    with torch.no_grad():
        m.mixer.biases[-1][-1] = 1  # the narrowest width alone
    g, n = torch.Generator().manual_seed(0), 64
    clean = rand(1, 1, 8, 8).tile(8, 8)
    q = clean + 0.05 * torch.randn(1, 1, n, n, generator=g, dtype=torch.float64)
    answer = clean[..., 12:-12, 12:-12] + m(q, clean, torch.tensor(0.05, dtype=torch.float64)).detach()
    error = float((answer - clean[..., 12:-12, 12:-12]).std()) / 0.05
    assert error < 1.2 * 8**0.5 / 9  # 8 others within reach, and the pilot, which has no noise here


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"radius and alike must be positive, got 0 and \[3, 7\]"):
        NonLocalLoFi(radius=0)


def test_mixing_of_gathered_pixels_is_matching():
    """What is gathered, mixed and put beside the local answer is what the network answers."""
    m = network(2).float()
    noisy = Noisy(lambda g: torch.rand(3, 2, 20, 22, generator=g), 0.05, 0.2)
    source = Evidence(m, noisy, 2, 4000, seed=5, progress=False)
    mixing = Mixing(m.matching, 2)
    with torch.no_grad():
        for number in range(2):
            q, x, sigma = noisy(seeded(5, "evidence", number))
            assert sigma is not None
            level, pixels = sigma[:, None, None, None], slice(number * 1320, (number + 1) * 1320)
            change = mixing(source.seen[pixels].float().T[None, :, None])
            wanted = source.wanted[pixels].float().T.reshape(2, 3, 20, 22).transpose(0, 1)
            answer = x - level * (wanted - change.reshape(2, 3, 20, 22).transpose(0, 1))
            torch.testing.assert_close(answer, m(q, sigma), rtol=0, atol=2e-3)
    drawn = source(torch.Generator().manual_seed(0))
    assert drawn.q.shape == (16, source.seen.shape[1], 1, 250) and drawn.x.shape == (16, 2, 1, 250)
    together = torch.cat([drawn.q[3, :, 0, 7], drawn.x[3, :, 0, 7]]).half()
    assert bool((torch.cat([source.seen, source.wanted], 1) == together).all(1).any())
    assert drawn.sigma is None and {p.data_ptr() for p in mixing.parameters()} == {
        p.data_ptr() for p in m.matching.parameters()
    }


def test_an_l_learns_what_repeats_itself(tmp_path):
    """Stripes of which the local part, untrained, says nothing: gathered pixels and few steps halve its squares."""
    torch.manual_seed(0)
    m = NonLocalLoFi(**LOCAL, radius=6, alike=(1, 2), mixing=(8,))
    before = {name: w.clone() for name, w in m.named_parameters() if not name.startswith("matching.")}
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).tile(8)
    noisy = Noisy(lambda g: stripes.expand(2, 1, 40, 40), 0.1, 0.1)
    settings = TrainSettings(steps=150, lr=2e-2, loss="l2", weight=0.0, accumulate=2)
    source = Evidence(m, noisy, 2, 2000, progress=False)
    train(Mixing(m.matching, 1), source, settings, tmp_path / "a.safetensors", whole=m, progress=False)
    kept, _ = load_checkpoint(tmp_path / "a.safetensors")
    q, x, _ = noisy(torch.Generator().manual_seed(9))
    with torch.no_grad():
        local, whole = (float((y - x).square().mean()) for y in (SharedLoFi.forward(m, q, 0.1), kept(q, 0.1)))
    assert whole < local / 2
    for name, w in before.items():
        assert torch.equal(kept.state_dict()[name], w)


def test_a_broken_off_l_goes_on_to_the_same_bits(tmp_path):
    noisy = Noisy(lambda g: torch.rand(1, 1, 20, 20, generator=g), 0.1, 0.1)
    settings = TrainSettings(steps=20, loss="l2", ema=0.9)

    def run(out, start="natural", **more):
        torch.manual_seed(0)
        m = NonLocalLoFi(**LOCAL, radius=2, alike=(1,), mixing=(4,))
        source, mixing = Evidence(m, noisy, 1, 100, progress=False), Mixing(m.matching, 1)
        train(mixing, source, settings, out, whole=m, keep_every=7, progress=False, dtype=torch.float16,
              about={"start": start}, **more)  # fmt: skip
        return m.state_dict()

    def stop(model):
        raise KeyboardInterrupt

    whole = run(tmp_path / "a.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.safetensors", validate=stop, validate_every=16)
    with pytest.raises(ValueError, match=r"other identity: {'start': 'natural'}, asked for {'start': 'ct'}"):
        run(tmp_path / "b.safetensors", start="ct", resume=True)  # the local part is not in the state
    resumed = run(tmp_path / "b.safetensors", resume=True)
    stored = load_checkpoint(tmp_path / "b.safetensors")[0].state_dict()
    for name, w in whole.items():
        assert torch.equal(resumed[name], w) and torch.equal(stored[name], w)
