"""Whether an image's field suits the observation: primary beam, smearing by averages."""

import warnings
from typing import Any

import torch

from pnp_lofi.primary_beam import Pattern, pattern
from pnp_lofi.visibilities import Visibilities

SMEARED = 0.5  # phase at the image's edge [rad] from which on we say so
WIDEST = 4.0  # times the width at half power: beyond it there is nothing but side lobes


def check_field(source: Visibilities, shape: tuple[int, int], cell: float, frequency: float) -> dict[str, Any]:
    """Warn of a field that is smaller than the telescope's primary beam or much wider, and of averages that smear.

    Simulations, which know the true sky, are not compared with a primary beam: theirs has none.

    :param tuple shape: (H, W); float cell: [arcsec]; float frequency: [Hz].
    :returns: what was found, for the JSON.
    """
    height, width = (n * cell / 60 for n in shape)
    told: dict[str, Any] = {"field_of_view_arcmin": [height, width]}
    power = of_telescope(source.telescope, frequency)
    if power is not None and source.truth is None:
        fwhm = half_power_width(power)
        told["primary_beam_fwhm_arcmin"] = fwhm
        sizes = f"the image spans {height:.3g} x {width:.3g} arcmin, {source.telescope}'s primary beam {fwhm:.3g}"
        if min(height, width) < fwhm:
            warnings.warn(
                f"{sizes} (half power): sources beyond the image's edge leave side lobes in it; a larger --size shows "
                "them",
                stacklevel=2,
            )
        elif max(height, width) > WIDEST * fwhm:
            warnings.warn(f"{sizes} (half power): most of it sees no more than noise", stacklevel=2)
    if source.time_average or source.channel_average > 1:
        phases = dict(zip(("time", "channel"), source.smearing(max(shape) * cell), strict=True))
        for axis, phase in phases.items():
            told[f"smearing_{axis}_rad"] = phase
            if phase > SMEARED:
                warnings.warn(
                    f"averaging smears what lies at the image's edge: {phase:.2f} rad by --{axis}-average; average "
                    "less, or take a smaller field",
                    stacklevel=2,
                )
    return told


def of_telescope(name: str, frequency: float) -> Pattern | None:
    """The primary beam of a telescope by the name that its files give it; None if it is not known."""
    start = name.strip().lower()
    for prefix, kind in (("meerkat", "meerkat"), ("vla", "vla"), ("evla", "vla")):
        if start == prefix or start.startswith(prefix + " "):
            return pattern(kind, frequency)
    return None


def half_power_width(power: Pattern) -> float:
    """Full width at half power [arcmin], by bisection of the main lobe."""
    low, high = 0.0, 1e-4
    while float(power(torch.tensor(high, dtype=torch.float64))) > 0.5:
        low, high = high, 1.3 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if float(power(torch.tensor(middle, dtype=torch.float64))) > 0.5 else (low, middle)
    return 60 * (low + high)
