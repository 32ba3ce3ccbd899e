"""What LoFi may see besides the raw image: learned linear filters of it, computed once and shared by all patches."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate
from torch.nn.functional import pad as torch_pad

from pnp_lofi.sampling import keys_cubic, reflect_pad

Use = Literal["both", "filtered", "raw"]
OFFICIAL_PADDING = 5  # zeros on each side, in the authors' code


class SpectralFilter(nn.Module):
    """Noise suppression in Fourier space: q~ = [q, Re F^-1 H_l F q, Im F^-1 H_l F q], l = 1..count.

    H is complex, starts from ones, and is learned on a grid of frequencies in cycles/pixel from which it is
    interpolated (periodic Keys cubic) to any image size and shape. The filter is global: it runs once, before tiles.

    :param int channels: of the image.
    :param int count: filters per channel (L); all channels of the first filter come before those of the second.
    :param int size: H is kept at size x size frequencies.
    :param str use: "both" for [q, filtered], "filtered", or "raw" for q alone.
    :param bool complex_pair: read two channels as one complex image (Kaiser-Squires' E and B).
    :param int padding: pixels by which the image is extended by reflection, so that opposite borders do not mix.
    :param bool official: as the authors' code: 5 zeros on each side, H interpolated (torch's bicubic) in the order of
        the FFT, filtered channels first, ``size`` the side of the *padded* training image, square images only.
    :raises ValueError: if a size is not positive or complex_pair is asked for without two channels.
    Source: arXiv 2411.04995, section III-C. Differs: extension by reflection instead of zeros, frequencies in order.
    """

    def __init__(
        self,
        channels: int,
        *,
        count: int = 1,
        size: int = 128,
        use: Use = "both",
        complex_pair: bool = False,
        padding: int = 16,
        official: bool = False,
    ) -> None:
        super().__init__()
        _check(channels, count, size, use)
        if complex_pair and channels != 2:
            raise ValueError(f"complex_pair reads two channels as one complex image, got {channels} channels")
        if size < 4:
            raise ValueError(f"a SpectralFilter is kept at 4 x 4 frequencies or more, got {size}")
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.channels, self.count, self.use, self.complex_pair = channels, count, use, complex_pair
        self.padding, self.official = OFFICIAL_PADDING if official else padding, official
        fields = 1 if complex_pair else channels
        # Real pairs: `.to(float64)` on a module drops the imaginary part of a complex parameter.
        start = torch.zeros(2, count * fields, size, size)
        start[0] = 1
        self.response = nn.Parameter(start)
        self.out_channels = _outputs(channels, 2 * count * fields, use)
        self.margin: int | None = None  # reaches everywhere

    def forward(self, q: Tensor) -> Tensor:
        """:param torch.Tensor q: (B, channels, H, W).
        :returns: (B, out_channels, H, W).
        """
        if self.use == "raw":
            return q
        edge, (height, width) = self.padding, q.shape[-2:]
        field = torch_pad(q, (edge,) * 4) if self.official else reflect_pad(q, edge)
        field = torch.complex(field[:, :1], field[:, 1:]) if self.complex_pair else field
        spectrum = torch.fft.fft2(field).repeat(1, self.count, 1, 1)
        filtered = torch.fft.ifft2(spectrum * self.at_size(field.shape[-2:]))
        filtered = filtered[..., edge : edge + height, edge : edge + width]
        return _combine(q, torch.cat([filtered.real, filtered.imag], 1), self.use, self.official)

    def at_size(self, shape: tuple[int, int] | torch.Size) -> Tensor:
        """H at the frequencies of an image, in the order of the FFT.

        :param tuple shape: (H, W) of the (extended) image.
        :returns: complex (count channels, H, W).
        """
        size = self.response.shape[-1]
        if tuple(shape) == (size, size):
            pair: Tensor = self.response
        elif self.official:
            if shape[0] != shape[1]:
                raise ValueError(f"the authors' filter takes square images only, got {tuple(shape)} with its padding")
            pair = interpolate(self.response, size=tuple(shape), mode="bicubic")
        else:
            rows, columns = (self._at_frequencies(n) for n in shape)
            pair = rows @ self.response @ columns.T
        return torch.complex(pair[0], pair[1])

    def _at_frequencies(self, n: int) -> Tensor:
        """(n, size): periodic Keys cubic interpolation of H at the n frequencies of an axis."""
        size = self.response.shape[-1]
        grid = torch.arange(size, dtype=self.response.dtype, device=self.response.device)
        distance = torch.fft.fftfreq(n, dtype=grid.dtype, device=grid.device)[:, None] * size - grid
        return keys_cubic(distance - size * torch.round(distance / size))


class SpatialFilter(nn.Module):
    """Learned s x s kernels, a local noise suppression: q~ = [q, k_l * q], l = 1..count, for each channel.

    :param int channels: of the image.
    :param int count: kernels per channel, those of the first channel first; they start as unit impulses.
    :param int size: s, odd [pixel].
    :param str use: "both" for [q, filtered], "filtered", or "raw" for q alone.
    :raises ValueError: if a size is not positive or s is even.
    Source: arXiv 2411.04995, eq. 14. Borders are reflected.
    """

    def __init__(self, channels: int, *, count: int = 1, size: int = 9, use: Use = "both") -> None:
        super().__init__()
        _check(channels, count, size, use)
        if size % 2 == 0:
            raise ValueError(f"the kernels of a SpatialFilter need an odd size, got {size}")
        self.channels, self.count, self.use = channels, count, use
        kernels = torch.zeros(channels * count, 1, size, size)
        kernels[..., size // 2, size // 2] = 1
        self.kernels = nn.Parameter(kernels)
        self.out_channels = _outputs(channels, channels * count, use)
        self.margin: int | None = size // 2

    def forward(self, q: Tensor) -> Tensor:
        """:param torch.Tensor q: (B, channels, H, W).
        :returns: (B, out_channels, H, W).
        """
        if self.use == "raw":
            return q
        padded = reflect_pad(q, self.kernels.shape[-1] // 2)
        return _combine(q, conv2d(padded, self.kernels, groups=self.channels), self.use, False)


def _check(channels: int, count: int, size: int, use: str) -> None:
    if min(channels, count, size) < 1:
        raise ValueError(f"a filter expects channels, count and size >= 1, got {channels}, {count} and {size}")
    if use not in ("both", "filtered", "raw"):
        raise ValueError(f"use must be 'both', 'filtered' or 'raw', got {use!r}")


def _outputs(raw: int, filtered: int, use: Use) -> int:
    return {"both": raw + filtered, "filtered": filtered, "raw": raw}[use]


def _combine(q: Tensor, filtered: Tensor, use: Use, filtered_first: bool) -> Tensor:
    if use == "filtered":
        return filtered
    return torch.cat([filtered, q] if filtered_first else [q, filtered], 1)


def make_filter(
    channels: int, *, kind: str = "", official: bool = False, **options: Any
) -> SpectralFilter | SpatialFilter:
    """The filter that a LoFi's configuration names.

    :raises ValueError: for an unknown kind, or a spatial filter in the official conventions.
    """
    if kind == "spectral":
        return SpectralFilter(channels, official=official, **options)
    if kind == "spatial" and not official:
        return SpatialFilter(channels, **options)
    raise ValueError(f"a filter's kind is 'spectral' or (not official) 'spatial', got {kind!r}")
