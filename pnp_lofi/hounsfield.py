"""Hounsfield units, attenuation, and the windows in which CT is looked at."""

from torch import Tensor

WATER = 0.02  # attenuation of water at about 60 keV [1/mm]
# centre and width [HU]
RANGE = (0.0, 2000.0)  # what networks see as 0 to 1, with ``window``
WINDOWS = {"lung": (-600, 1500), "soft": (40, 400), "bone": (500, 2000), "brain": (40, 80)}


def attenuation(hu: Tensor, pixel: float = 1.0) -> Tensor:
    """Linear attenuation [1/mm], 0.02 (1 + HU/1000) and not below zero; times ``pixel`` [mm], in [1/pixel]."""
    return (WATER * pixel * (1 + hu / 1000)).clamp(min=0)


def hounsfield(mu: Tensor, pixel: float = 1.0) -> Tensor:
    """The inverse of :func:`attenuation`."""
    return (mu / (WATER * pixel) - 1) * 1000


def window(hu: Tensor, name: str | tuple[float, float] = "soft") -> Tensor:
    """Hounsfield units to [0, 1], for a picture or a network.

    :param name: "lung", "soft", "bone" or "brain"; or (centre, width) [HU].
    """
    if isinstance(name, str) and name not in WINDOWS:
        raise ValueError(f"expected a window of {', '.join(WINDOWS)} or (centre, width) in HU, got {name!r}")
    centre, width = WINDOWS[name] if isinstance(name, str) else name
    return ((hu - centre) / width + 0.5).clamp(0, 1)
