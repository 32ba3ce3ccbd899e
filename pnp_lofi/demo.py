"""`pnp-lofi demo`: a photograph with 70 % of its pixels lost, and a simulated sky seen by MeerKAT."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import SSIM
from deepinv.models import Denoiser, TVDenoiser
from deepinv.physics import LinearPhysics
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pnp_lofi.admm import ADMM
from pnp_lofi.figures import Panel, save_figure
from pnp_lofi.files import check_writable, write_json
from pnp_lofi.images import load_image
from pnp_lofi.memory import peak_memory_mb
from pnp_lofi.metrics import psnr
from pnp_lofi.operators import Mask, random_mask
from pnp_lofi.parameters import mean_eigenvalue
from pnp_lofi.priors import LoFiPrior
from pnp_lofi.radio import STRETCH
from pnp_lofi.radio_measurement import measurement
from pnp_lofi.radio_simulation import simulate
from pnp_lofi.skies import radio_sky

SIZE = 512
SKY_SEED = 20_005  # of the held-out sky; training uses seeds 0 and 1
TV_INNER = 30  # iterations of deepinv's TV denoiser in each ADMM iteration, warm-started
# TV's threshold, and alpha over the operator's scale: the best of grids on other images, Set12 (benchmarks/inpaint.py)
# and the sky of seed 20004
TV_INPAINTING, TV_INPAINTING_ALPHA = 0.2, 0.002
TV_RADIO, TV_RADIO_ALPHA = 4e-3, 0.7


@dataclass(frozen=True)
class Case:
    """One problem of the demo.

    :param str name: of its figure and rows.
    :param LinearPhysics op: forward operator; Tensor y: data; Tensor truth: (1, C, H, W).
    :param Tensor shown: the picture of the measurement.
    :param float tv: threshold of TV; float tv_alpha: ADMM's penalty with it.
    :param bool sky: drawn North up on an asinh scale.
    """

    name: str
    op: LinearPhysics
    y: Tensor
    truth: Tensor
    shown: Tensor
    tv: float
    tv_alpha: float
    sky: bool


def astronaut() -> Case:
    """scikit-image's astronaut, 512 x 512 RGB, 30 % of the pixels kept."""
    try:
        import skimage
    except ImportError as error:
        raise ImportError("the demo's photograph comes with scikit-image: pip install 'pnp_lofi[train]'") from error
    x = load_image(Path(skimage.__file__).parent / "data" / "astronaut.png")
    op = Mask(random_mask(x.shape[-2:], 0.3, seed=0))
    y = op.A(x)
    return Case("inpainting", op, y, x, y[0], TV_INPAINTING, TV_INPAINTING_ALPHA, False)


def meerkat() -> Case:
    """A held-out procedural sky, 512 x 512, observed for 2 h at 30 dB."""
    sky = radio_sky(1, SIZE, seed=SKY_SEED)
    op, y = measurement(simulate(sky[0, 0].numpy(), hours=2, snr=30), (SIZE, SIZE))
    return Case("radio", op, y, sky, op.dirty(y)[0], TV_RADIO, TV_RADIO_ALPHA * mean_eigenvalue(op, sky), True)


def priors(case: Case) -> dict[str, tuple[Denoiser, dict[str, Any]]]:
    """The two priors that are compared, with the arguments their solver takes."""
    lofi = LoFiPrior("radio" if case.sky else "natural", precision="float32" if case.sky else "auto")
    return {
        "TV (deepinv)": (TVDenoiser(n_it_max=TV_INNER), {"sigma_d": case.tv, "alpha": case.tv_alpha, "max_iter": 100}),
        "LoFi-ADMM": (lofi, {}),
    }


def solve_case(name: str, method: str) -> tuple[Tensor, dict[str, Any]]:
    """One reconstruction and its row of the table."""
    case = {"inpainting": astronaut, "radio": meerkat}[name]()
    prior, options = priors(case)[method]
    start = time.perf_counter()
    noise = None if case.sky else 0.0  # the operator names the visibilities' noise; the pixels are exact
    x = ADMM(case.op, prior, sigma_n=noise, nonneg=case.sky, **options)(case.y)
    seconds = time.perf_counter() - start
    similarity = float(SSIM()(x / case.truth.max(), case.truth / case.truth.max()))
    row = {"problem": name, "method": method, "psnr": psnr(x, case.truth), "ssim": similarity, "seconds": seconds,
           "peak_memory_mb": peak_memory_mb()}  # fmt: skip
    return x, row


def run(out: str | os.PathLike[str], *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Both problems, both methods, each in a process of its own so that its peak memory is its own.

    Writes OUT/inpainting.png, OUT/radio.png and OUT/demo.json.

    :returns: the rows of the table.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("inpainting.png", "radio.png", "demo.json"):
        check_writable(out / name, overwrite=overwrite)
    rows: list[dict[str, Any]] = []
    for make in (astronaut, meerkat):
        case = make()
        images = {}
        for method in ("TV (deepinv)", "LoFi-ADMM"):
            print(f"{case.name}: {method}", file=sys.stderr, flush=True)
            images[method], row = _in_a_process(case.name, method, out)
            rows.append(row)
        save_figure(out / f"{case.name}.png", _panels(case, images, rows[-2:]), sky=case.sky, overwrite=True)
    write_json(out / "demo.json", {"threads": torch.get_num_threads(), "rows": rows}, overwrite=True)
    _print_table(rows, out)
    return rows


def _in_a_process(name: str, method: str, folder: Path) -> tuple[Tensor, dict[str, Any]]:
    path = folder / "part.safetensors"
    code = (
        "import json, sys, torch; from pnp_lofi.demo import solve_case; "
        "from safetensors.torch import save_file; "
        "x, row = solve_case(sys.argv[1], sys.argv[2]); "
        "save_file({'x': x.contiguous()}, sys.argv[3]); print(json.dumps(row))"
    )
    from safetensors.torch import load_file

    try:
        done = subprocess.run([sys.executable, "-c", code, name, method, str(path)], check=True, stdout=subprocess.PIPE)
        return load_file(path)["x"], json.loads(done.stdout.splitlines()[-1])
    finally:
        path.unlink(missing_ok=True)


def _panels(case: Case, images: dict[str, Tensor], rows: list[dict[str, Any]]) -> list[Panel]:
    truth = case.truth[0]
    peak = float(truth.max())
    look: dict[str, Any] = {"limits": (0.0, peak)}
    if case.sky:
        look |= {"cmap": "inferno", "stretch": STRETCH / peak}
    panels = [Panel("dirty image" if case.sky else "30 % of the pixels", case.shown, cmap=look.get("cmap", "gray"))]
    panels += [
        Panel(f"{row['method']}: {row['psnr']:.2f} dB", image[0], **look)
        for row, image in zip(rows, images.values(), strict=True)
    ]
    error = (images["LoFi-ADMM"][0] - truth).abs().mean(0)
    panels += [Panel("truth", truth, **look), Panel("LoFi-ADMM's error", error, cmap="magma", unit="|x - truth|")]
    return panels


def _print_table(rows: list[dict[str, Any]], out: Path) -> None:
    table = Table(title=f"figures in {out}/")
    for column in ("problem", "method", "PSNR [dB]", "SSIM", "seconds", "peak memory [MB]"):
        table.add_column(column, justify="left" if column in ("problem", "method") else "right")
    for row in rows:
        figures = f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['seconds']:.1f}", f"{row['peak_memory_mb']:.0f}"
        table.add_row(row["problem"], row["method"], *figures)
    Console().print(table)
