"""Draws docs/images/procedural.png, a row of each procedural set: python -m benchmarks.procedural."""

from pathlib import Path

import torch
from torch import Tensor

from pnp_lofi.convergence import convergence
from pnp_lofi.hounsfield import window
from pnp_lofi.images import save_png
from pnp_lofi.leaves import dead_leaves
from pnp_lofi.organs import chest, head
from pnp_lofi.skies import radio_sky

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "procedural.png"
COUNT, SIZE, GAP = 5, 200, 4


def rows(seed: int = 3) -> list[Tensor]:
    """(COUNT, 1, SIZE, SIZE) in [0, 1] of each set."""
    kappa = convergence(COUNT, SIZE, 0.5, seed=seed)
    return [
        window(chest(COUNT, SIZE, seed=seed), (-250, 1500)),
        window(head(COUNT, SIZE, seed=seed), (40, 140)),
        ((kappa + 0.05) / 0.2).clamp(0, 1),
        dead_leaves(COUNT, SIZE, seed=seed),
        radio_sky(COUNT, SIZE, seed=seed) ** 0.4,
    ]


def main() -> None:
    white = 1.0
    pictures = [torch.nn.functional.pad(row[:, 0], (0, GAP, 0, GAP), value=white) for row in rows()]
    save_png(OUT, torch.cat([torch.cat(list(row), 1) for row in pictures])[:-GAP, :-GAP], overwrite=True)


if __name__ == "__main__":
    main()
