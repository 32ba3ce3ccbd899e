"""Values, gradients and Laplacians of random Gaussians, by autograd through kernels and networks, against the formula.

exp(-|x - c|^2 / (2 s^2)), s uniform in [.1, .4] and c in [.3, .7]^2 of the unit square, sampled on n x n pixels;
measured at random places in [.1, .9]^2, so that no patch meets the border. SNR [dB] of the value, of the gradient's
norm and of the Laplacian, mean over Gaussians. Networks are those of benchmarks/superres.py (--work), and the shipped
zoom.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import mean, parser, report, start
from pnp_lofi.checkpoint import load_checkpoint, shipped
from pnp_lofi.funknn import FunkNN
from pnp_lofi.interpolation import Interpolator
from pnp_lofi.metrics import snr
from pnp_lofi.sampling import grid_coords
from pnp_lofi.zoom import Field

REFERENCE = {"FunkNN (published)": {"value": 72.1, "gradient": 33.8, "laplacian": 18.1,
                                    "source": "arXiv 2212.14042, sigma in [.1, .4]"}}  # fmt: skip
NETWORKS = ("FunkNN continuous", "FunkNN fast", "LoFi factor", "LIIF small")


def gaussian(coords: Tensor, centre: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient's norm and Laplacian at (P, 2)."""
    square = (coords - centre).square().sum(-1)
    value = torch.exp(-square / (2 * width**2))
    return value, value * square.sqrt() / width**2, value * (square / width**2 - 2) / width**2


def measured(model: Any, side: int, count: int, places: int) -> dict[str, float]:
    """Means of the SNR over Gaussians; in float64 for kernels, the network's own precision otherwise."""
    dtype = torch.float64
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(7)
    each: dict[str, list[float]] = {"value": [], "gradient": [], "laplacian": []}
    for _ in range(count):
        width = 0.1 + 0.3 * float(torch.rand((), generator=generator))
        centre = 0.3 + 0.4 * torch.rand(2, generator=generator, dtype=dtype)
        coords = 0.1 + 0.8 * torch.rand(places, 2, generator=generator, dtype=dtype)
        image = gaussian(grid_coords((side, side), dtype=dtype), centre, width)[0].reshape(1, 1, side, side)
        truth = gaussian(coords, centre, width)
        found = Field(model, image, points=256)
        with torch.no_grad():
            value = found.value(coords)[0, :, 0]
        slope, bend = found.gradient(coords)[0, :, 0].norm(dim=-1), found.laplacian(coords)[0, :, 0]
        for key, got, expected in zip(each, (value, slope, bend), truth, strict=True):
            each[key].append(snr(got, expected))
    return {key: mean(values) for key, values in each.items()}


def main() -> None:
    made = parser(__doc__, "derivatives")
    made.add_argument("--work", type=Path, default=Path("superres"), help="folder of benchmarks.superres")
    made.add_argument("--count", type=int, default=8, help="Gaussians")
    made.add_argument("--places", type=int, default=500, help="of each")
    args = start(made)
    models: dict[str, Any] = {kernel: Interpolator(kernel) for kernel in ("bilinear", "bicubic", "smooth")}
    paths: dict[str, Any] = {name: args.work / f"{name.replace(' ', '_')}.safetensors" for name in NETWORKS}
    if "zoom" in shipped():
        paths["zoom (shipped)"] = "zoom"
    for name, path in paths.items():
        if path != "zoom" and not path.is_file():
            continue
        models[name] = load_checkpoint(path)[0]
        if isinstance(models[name], FunkNN) and models[name].kernel != "smooth":
            models[f"{name}, smooth kernel"] = load_checkpoint(path)[0]
            models[f"{name}, smooth kernel"].kernel = "smooth"
    rows = {}
    for name, model in models.items():
        rows[name] = {str(side): measured(model, side, args.count, args.places) for side in (64, 128)}
        print(name, rows[name], flush=True)
    payload = {"rows": rows, "count": args.count, "places": args.places, "reference": REFERENCE}
    report("derivatives", payload, args.results)


if __name__ == "__main__":
    main()
