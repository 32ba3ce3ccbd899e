"""Sharing computation across pixels: denoising quality against multiply-adds, for local networks of several shapes.

Each network is trained from the same seed, on the same crops and noise, for the same number of steps in bfloat16, and
measured on photographs that nothing is trained on, but on which the shape of size S was chosen; Set12 stands beside
them. Runs from other seeds differ by up to 0.1 dB. The steps are few, so this compares how fast shapes learn as well as
what they can hold. All of them work in units of sigma and are blind to a constant. Rows are kept as they come: --shapes
measures some anew beside those of earlier runs.
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_shuffle, unfold
from tqdm import tqdm

from benchmarks.common import mean, parser, report, set12, start, write_result
from pnp_lofi import LoFi
from pnp_lofi.images import load_image
from pnp_lofi.metrics import psnr
from pnp_lofi.sampling import stencil
from pnp_lofi.shared import SharedLoFi
from pnp_lofi.sources import natural_batches

LEVELS = (15 / 255, 25 / 255, 50 / 255)
TILE, MARGIN, OBJECTS = 16, 24, 32  # what is learned from a crop, its surroundings [pixel], crops a step
LOW, HIGH, LR, WEIGHT = 2e-3, 0.25, 2e-3, 0.7
SEED = 0
HELD_OUT = ("camera", "astronaut", "coffee")
TAPS = 16  # of a point that is read by cubic interpolation
BUDGET = 250_000  # multiply-adds a pixel


class Local(nn.Module):
    """A network of valid convolutions: an image with ``reach`` pixels around it -> the image."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def interior(self, q: Tensor, sigma: Tensor, *, compute_dtype: torch.dtype | None = None) -> Tensor:
        x = (q - q.mean((-2, -1), keepdim=True)).contiguous(memory_format=torch.channels_last) / sigma
        with torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype == torch.bfloat16):
            out = self.network(x)
        return out.float() * sigma + crop(q, self.reach)

    def forward(self, q: Tensor, sigma: float) -> Tensor:
        return self.interior(pad(q, (self.reach,) * 4, mode="reflect"), torch.tensor(sigma))

    def network(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def macs(self) -> int:
        """Multiply-adds a pixel; every weight is used once."""
        return sum(p.numel() for p in self.parameters() if p.ndim == 4)


def layer(inputs: int, outputs: int, side: int = 1, *, bias: bool = True, **options: int) -> nn.Conv2d:
    """A convolution with He's uniform start."""
    made = nn.Conv2d(inputs, outputs, side, bias=bias, **options)
    bound = math.sqrt(3 / made.weight[0].numel())
    for p in made.parameters():
        nn.init.uniform_(p, -bound, bound)
    return made


def blind(first: nn.Conv2d, x: Tensor, stride: int = 1) -> Tensor:
    """First layers do not see a constant."""
    return conv2d(x, first.weight - first.weight.mean((1, 2, 3), keepdim=True), first.bias, stride=stride)


def crop(x: Tensor, margin: int) -> Tensor:
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin] if margin else x


class Window(Local):
    """No sharing: a window of free filters (a low-rank first layer of all its pixels), then an MLP.

    With ``block`` = 2 one window answers for 2 x 2 pixels, which gives up exact shifts by one pixel.
    """

    def __init__(self, side: int, widths: tuple[int, ...], block: int = 1) -> None:
        super().__init__((side - block) // 2)
        self.block = block
        self.first = layer(1, widths[0], side)
        self.rest = nn.ModuleList(layer(a, b) for a, b in zip(widths, (*widths[1:], block**2), strict=True))

    def network(self, x: Tensor) -> Tensor:
        h = blind(self.first, x, self.block)
        for each in self.rest:
            h = each(h.relu())
        return pixel_shuffle(h, self.block)

    def macs(self) -> int:
        return super().macs() // self.block**2


class Stages(Local):
    """Features of features: a window's features, ``stages`` of (side, spacing, width) that add to them, a mixer.

    :param int raw: side of a window of the image that the mixer reads as well; own: it reads the pixel's own first
        layer in full.
    """

    def __init__(
        self,
        side: int,
        filters: int,
        features: int,
        stages: tuple[tuple[int, int, int], ...],
        last: tuple[int, int, int],
        *,
        raw: int = 0,
        own: bool = False,
    ) -> None:
        reach = side // 2 + sum(n // 2 * d for n, d, _ in (*stages, last))
        super().__init__(reach)
        self.first, self.summary = layer(1, filters, side), layer(filters, features)
        self.stages = nn.ModuleList(
            nn.ModuleList([layer(features, width, n, dilation=d), layer(width, features)]) for n, d, width in stages
        )
        n, d, width = last
        self.last = layer(features, width, n, dilation=d)
        self.raw = layer(1, width, raw, bias=False) if raw else None
        self.own = layer(filters, width, bias=False) if own else None
        self.rest = nn.ModuleList([layer(width, 128), layer(128, 1)])

    def network(self, x: Tensor) -> Tensor:
        seen = blind(self.first, x).relu()
        h = self.summary(seen)
        for gather, mix in self.stages:
            g = mix(gather(h.relu()).relu())
            h = g + crop(h, (h.shape[-1] - g.shape[-1]) // 2)
        out = self.last(h.relu())
        if self.raw is not None:
            out = out + blind(self.raw, crop(x, self.reach - self.raw.kernel_size[0] // 2))
        if self.own is not None:
            out = out + self.own(crop(seen, (seen.shape[-1] - out.shape[-1]) // 2))
        for each in self.rest:
            out = each(out.relu())
        return out


class Polar(Local):
    """A polar patch whose points are Gaussian means, the wider the farther out: outer rings read blurred copies.

    :param tuple levels: (rings, first and last radius, width of the Gaussian) [pixel], inner rings first.
    :param bool tied: all rays share one MLP: rings first, then rays, a separable network.
    """

    def __init__(self, rays: int, levels: tuple[tuple[int, float, float, float], ...], *, tied: bool = False) -> None:
        reach = math.ceil(max(last + 3 * width for _, _, last, width in levels)) + 2
        super().__init__(reach)
        self.rays, self.tied, self.blurs = rays, tied, [width for *_, width in levels if width]
        parts = []
        for rings, first, last, width in levels:
            radius = torch.linspace(first, last, rings)
            angle = 2 * math.pi * torch.arange(rays) / rays
            at = torch.stack([angle.sin(), angle.cos()], -1)[:, None] * radius[:, None]
            matrix = stencil(at.reshape(-1, 2), reach)
            if width:
                matrix = _blur(reach, width) @ matrix
            parts.append(matrix.T.reshape(rays, rings, -1))
        kernels = torch.cat(parts, 1)
        self.rings = kernels.shape[1]
        kernels = kernels.flatten(0, 1)
        self.register_buffer("kernels", kernels - kernels.mean(0))
        copies = 1 if tied else rays
        widths = (self.rings, 64, 24)
        self.first = nn.ModuleList(layer(copies * a, copies * b, groups=copies) for a, b in pairwise(widths))
        self.rest = nn.ModuleList([layer(rays * widths[-1], 128), layer(128, 128), layer(128, 1)])

    def network(self, x: Tensor) -> Tensor:
        kernels = self.get_buffer("kernels")
        side = 2 * self.reach + 1
        batch, height, width = len(x), x.shape[-2] - side + 1, x.shape[-1] - side + 1
        h = torch.stack([kernels @ unfold(row, side) for row in x[:, None].unbind()])  # few at a time, for the memory
        h = h.reshape(batch, -1, height, width)
        if self.tied:
            h = h.reshape(batch * self.rays, self.rings, height, width)
        for k, each in enumerate(self.first):
            h = each(h.relu() if k else h)
        h = h.reshape(batch, -1, height, width)
        for k, each in enumerate(self.rest):
            h = each(h.relu() if k else h)
        return h

    def macs(self) -> int:
        rays = sum(p.numel() for p in self.first.parameters() if p.ndim == 4)
        mixer = sum(p.numel() for p in self.rest.parameters() if p.ndim == 4)
        reading = TAPS * self.rays * self.rings + sum(2 * (6 * math.ceil(w) + 1) for w in self.blurs)
        return reading + rays * (self.rays if self.tied else 1) + mixer


def _blur(reach: int, width: float) -> Tensor:
    """(S^2, S^2): a Gaussian blur inside a window."""
    ticks = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-0.5 * ((ticks[:, None] - ticks) / width) ** 2)
    line = line / line.sum(0)
    return torch.kron(line, line)


def points(rays: int, rings: int, radius: float, hidden: tuple[int, ...], features: int) -> LoFi:
    return LoFi(rays=rays, rings=rings, radius=radius, hidden=hidden, features=features, mixer=(128, 128))


SHAPES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "points-64": ("LoFi, 8 x 8 learned points, radius 6", partial(points, 8, 8, 6.0, (32,), 16)),
    "points-144": ("LoFi, 12 x 12 learned points, radius 8", partial(points, 12, 12, 8.0, (64, 64), 24)),
    "points-192": ("LoFi, wider stencil, narrower MLP: 16 x 12, radius 11", partial(points, 16, 12, 11.0, (32,), 16)),
    "separable": (
        "12 x 12 points, one MLP for the rings of all rays",
        lambda: Polar(12, ((12, 0.0, 8.0, 0.0),), tied=True),
    ),
    "blurred": (
        "12 rays to 12 pixels, outer rings from blurred copies",
        lambda: Polar(12, ((8, 0.0, 6.0, 0.0), (3, 7.0, 9.0, 1.2), (2, 10.0, 12.0, 2.5))),
    ),
    "window-15": ("window 15 of free filters", lambda: Window(15, (128, 128))),
    "window-21": ("window 21 of free filters, wider", lambda: Window(21, (192, 192, 192))),
    "block-22": ("window 22, one for 2 x 2 pixels", lambda: Window(22, (384, 384, 384), 2)),
    "shared-only": ("shared features, nothing else", lambda: Stages(9, 64, 16, (), (7, 2, 128))),
    "shared-own": ("shared features, own in full", lambda: Stages(11, 96, 16, (), (7, 2, 128), own=True)),
    "shared-16": (
        "shared features and a raw window, 16 features",
        lambda: SharedLoFi(filters=64, features=16, hidden=(128, 128)),
    ),
    "shared-24": ("shared features and a raw window, 24 features", lambda: SharedLoFi()),  # size S of before
    "shared-sparse": (
        "the same, lattice 5 x 5 at 3 pixels",
        lambda: SharedLoFi(filters=64, features=16, points=5, spacing=3, hidden=(128, 128)),
    ),
    "stages-3": ("features of features, raw window", lambda: Stages(7, 64, 16, ((5, 2, 64),), (5, 3, 128), raw=15)),
}


def macs(model: nn.Module) -> int:
    """Multiply-adds a pixel; a point costs its 16 taps (and more where it is run as a dense matrix)."""
    if isinstance(model, Local):
        return model.macs()
    weights = sum(p.numel() for name, p in model.named_parameters() if "bias" not in name and "offsets" not in name)
    if isinstance(model, LoFi):
        weights += TAPS * model.geometry.offsets[..., 0].numel()
    return weights


def learn(model: nn.Module, steps: int) -> float:
    """Train; returns the seconds."""
    batches = natural_batches(TILE + 2 * MARGIN, OBJECTS, SEED)
    g = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.9, 0.99))
    begin = time.perf_counter()
    for step in tqdm(range(steps), leave=False):
        clean = batches(g)
        sigma = (LOW * torch.exp(math.log(HIGH / LOW) * torch.rand(OBJECTS, generator=g)))[:, None, None, None]
        noisy = clean + sigma * torch.randn(clean.shape, generator=g)
        error = _inner(model, noisy, sigma) - crop(clean, MARGIN)
        loss = (error.abs().flatten(1).mean(1) / sigma.flatten() ** WEIGHT).mean()
        for group in optimiser.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - begin


def _inner(model: Any, noisy: Tensor, sigma: Tensor) -> Tensor:
    if isinstance(model, LoFi):
        side = noisy.shape[-1]
        rows = torch.arange(MARGIN, MARGIN + TILE)
        index = (rows[:, None] * side + rows).flatten()
        found = model.at_pixels(noisy, index, sigma.flatten(), compute_dtype=torch.bfloat16)
        return found.transpose(1, 2).reshape(len(noisy), 1, TILE, TILE)
    return model.interior(crop(noisy, MARGIN - model.reach), sigma, compute_dtype=torch.bfloat16)


@torch.no_grad()
def quality(model: nn.Module, images: dict[str, Tensor]) -> list[float]:
    """Mean PSNR at each level [dB]."""
    found = []
    for sigma in LEVELS:
        each = []
        for x in images.values():
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
            each.append(psnr(model(x + sigma * noise, sigma), x, 1.0))
        found.append(mean(each))
    return found


def held_out() -> dict[str, Tensor]:
    """Photographs of scikit-image on which nothing here is trained."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return {name: load_image(folder / f"{name}.png", grey=True) for name in HELD_OUT}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """PSNR on the held-out photographs against multiply-adds, one panel a level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(LEVELS), figsize=(15, 5), layout="constrained")
    for k, (axis, level) in enumerate(zip(axes, LEVELS, strict=True)):
        for row in rows:
            shared = row["name"].startswith("shared")
            axis.plot(row["macs"] / 1e3, row["held_out"][k], "o", color="tab:red" if shared else "tab:grey")
            axis.annotate(row["name"], (row["macs"] / 1e3, row["held_out"][k]), (4, 4), textcoords="offset points",
                          fontsize=8)  # fmt: skip
        axis.set(xlabel="multiply-adds a pixel [1000]", title=f"sigma {round(255 * level)}/255")
        axis.margins(0.15)
    axes[0].set_ylabel("PSNR, held-out photographs [dB]")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    made = parser(__doc__, "sharing", data=True)
    made.add_argument("--steps", type=int, default=3000, help="of training, each network")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="which networks")
    made.add_argument("--plot", type=Path, help="PNG of quality against multiply-adds")
    args = start(made)
    photographs, test = held_out(), set12(args.data)
    payload: dict[str, Any] = {"steps": args.steps, "budget": BUDGET, "levels": LEVELS}
    before = args.results / "sharing.json"
    found = json.loads(before.read_text()) if before.is_file() else {}
    kept = found.get("rows", []) if found.get("steps") == args.steps else []
    rows = [row for row in kept if row["name"] in SHAPES and row["name"] not in args.shapes]
    for row in rows:
        row["macs"] = macs(SHAPES[row["name"]][1]())
    for name in args.shapes:
        torch.manual_seed(SEED)
        title, make = SHAPES[name]
        model = make()
        row: dict[str, Any] = {"name": name, "title": title, "macs": macs(model), "train_seconds": 0.0}
        row["train_seconds"] = learn(model, args.steps)
        model.eval()
        row |= {"held_out": quality(model, photographs), "set12": quality(model, test)}
        rows.append(row)
        print(row, flush=True)
        write_result("sharing", payload | {"rows": rows}, args.results)
    report("sharing", payload | {"rows": rows}, args.results)
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
