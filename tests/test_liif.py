"""LIIF against the authors' formulation written out: unfolding, four shifted queries, areas, cells."""

import pytest
import torch
from torch.nn import functional as F

from pnp_lofi.checkpoint import load_checkpoint, save_checkpoint
from pnp_lofi.interpolation import Interpolator
from pnp_lofi.liif import LIIF


def image(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(model, q):
    h = model.head((q - 0.5) / 0.5)
    z = h
    for block in model.blocks:
        z = z + block.two(F.relu(block.one(z)))
    return model.tail(z) + h


def query(model, q, coords, footprint):
    """Chen et al. 2021: coordinates in [-1, 1], nearest features of four shifts, areas of the opposite corners."""
    batch, _, height, width = q.shape
    unfolded = F.unfold(features(model, q), 3, padding=1).view(batch, -1, height, width)
    coord = (2 * coords - 1).expand(batch, -1, 2)
    centres = torch.stack(torch.meshgrid(
        *((2 * torch.arange(n, dtype=q.dtype) + 1) / n - 1 for n in (height, width)), indexing="ij"
    ))[None].expand(batch, -1, -1, -1)  # fmt: skip
    first = torch.cat([model.first.weight.flatten(1), model.place.weight], 1)  # one dense layer of 9 C + 2 + 2 inputs
    answers, areas = [], []
    for v in (-1, 1):
        for h in (-1, 1):
            at = coord + torch.tensor([v / height, h / width], dtype=q.dtype) + 1e-6
            at = at.clamp(-1 + 1e-6, 1 - 1e-6).flip(-1).unsqueeze(1)

            def nearest(x, at=at):
                return F.grid_sample(x, at, mode="nearest", align_corners=False)[:, :, 0].transpose(1, 2)

            away = (coord - nearest(centres)) * torch.tensor([height, width], dtype=q.dtype)
            cell = torch.tensor([2 * footprint[0], 2 * footprint[1]], dtype=q.dtype).expand_as(away)
            x = F.linear(torch.cat([nearest(unfolded), away, cell], -1), first, model.first.bias)
            for layer in model.mlp:
                x = layer(F.relu(x))
            answers.append(x)
            areas.append((away[..., 0] * away[..., 1]).abs() + 1e-9)
    total = sum(areas)
    areas = areas[::-1]
    return sum(x * (a / total)[..., None] for x, a in zip(answers, areas, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_answers_are_those_of_the_authors_formulation(channels):
    torch.manual_seed(0)
    model = LIIF(channels, residual=False).double()
    q, coords = image(2, channels, 7, 9), image(40, 2, seed=2)
    coords[0], coords[1] = torch.tensor([0.001, 0.999]), torch.tensor([0.5, 0.001])  # beyond the outermost centres
    with torch.no_grad():
        torch.testing.assert_close(model.at(q, coords, (0.5, 0.3)), query(model, q, coords, (0.5, 0.3)),
                                   rtol=0, atol=1e-7)  # fmt: skip


def test_sizes():
    assert sum(p.numel() for p in LIIF(3, "paper").parameters()) == 1_567_299  # EDSR-baseline-LIIF
    assert 130_000 < sum(p.numel() for p in LIIF(3).parameters()) < 145_000


def test_residual_chunks_and_checkpoint(tmp_path):
    torch.manual_seed(1)
    model, bare = LIIF(), LIIF(residual=False)
    bare.load_state_dict(model.state_dict())
    q, coords = image(2, 1, 8, 8).float(), image(2, 21, 2).float()
    with torch.no_grad():
        whole = model.at(q, coords, 0.4)
        torch.testing.assert_close(whole, bare.at(q, coords, 0.4) + Interpolator("bilinear").at(q, coords))
        torch.testing.assert_close(model.at(q, coords, 0.4, chunk=4), whole)
        assert not torch.allclose(model.at(q, coords, 0.8), whole)
    save_checkpoint(tmp_path / "l.safetensors", model)
    loaded = load_checkpoint(tmp_path / "l.safetensors")[0]
    torch.testing.assert_close(loaded.at(q, coords, 0.4), whole, rtol=0, atol=1e-6)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="small, paper"):
        LIIF(1, "huge")
    with pytest.raises(ValueError, match=r"x\[None, None\]"):
        LIIF().at(torch.rand(8, 8), torch.rand(3, 2))
    with pytest.raises(ValueError, match="one or two numbers >= 0"):
        LIIF().at(torch.rand(1, 1, 8, 8), torch.rand(3, 2), -1.0)
