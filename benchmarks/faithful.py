"""The LoFi authors' scheme in plain torch, as an independent reference: grid_sample, one nn.Linear per layer and ray.

Written from a description of arXiv 2411.04995 and its code (MIT); ``state_dict`` has the layout of theirs. It is what
``pnp_lofi.official`` must repeat (tests/test_official.py) and what LoFi's speed is measured against.
Not theirs: grids of images that are not square, and more than one filter per channel, for which their layers have
the wrong width. Their filter crops odd sizes to even ones and fails; this one says so.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 5  # zeros on each side before the filter
FEATURES = 100  # outputs of a ray's MLP
CCPG_WIDTH, INR_WIDTH, DEPTH = 128, 256, 3


class Dense(nn.Module):
    """Linear layers, ``fcs``, with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.fcs[:-1]:
            x = F.relu(layer(x))
        return self.fcs[-1](x)


class Faithful(nn.Module):
    """The authors' LoFi: coordinates in [-1/2, 1/2], pixel i of n at i/(n - 1) - 1/2, order (row, column).

    The argument names are theirs: N rings, M rays; ``c_in`` and ``c_out`` channels; ``network`` "MultiMLP" or "MLP";
    ``patch_shape`` "round", "square" (N and M odd) or "random"; ``n_deform`` iterations of CCPG; ``coord_deform``
    for INR-LoFi. ``image_size`` is the side of the training images [pixel].

    :raises ValueError: for an unknown shape or network, a residual without a centre point, CCPG together with an INR.
    """

    def __init__(
        self,
        image_size: int = 128,
        c_in: int = 1,
        c_out: int = 1,
        *,
        network: str = "MultiMLP",
        hidden_dim: int = 370,
        num_layers: int = 3,
        patch_shape: str = "round",
        fourier_filtering: bool = True,
        residual_learning: bool = False,
        N: int = 9,
        M: int = 9,
        CCPG: bool = False,
        num_filters: int = 1,
        n_deform: int = 1,
        coord_deform: bool = False,
    ) -> None:
        super().__init__()
        if network not in ("MultiMLP", "MLP"):
            raise ValueError(f"network must be 'MultiMLP' or 'MLP', got {network!r}")
        if residual_learning and patch_shape == "random":
            raise ValueError("the authors' random patch has no centre point; pass residual_learning=False")
        if CCPG and coord_deform:
            raise ValueError("the authors' INR overwrites what CCPG has found; ask for one of them")
        self.image_size, self.c_in, self.c_out, self.N, self.M = image_size, c_in, c_out, N, M
        self.residual_learning = residual_learning
        self.centre = (4, 4) if patch_shape == "square" else (0, 0)  # (ring, ray) whose value is "the" pixel
        self.patch = nn.Parameter(start_patch(patch_shape, N, M, image_size))
        self.patch_scale = nn.Parameter(torch.ones(1))
        seen = c_in
        self.filter: nn.Parameter | None = None
        if fourier_filtering:
            fields = 1 if c_in == 2 else num_filters * c_in
            side = image_size + 2 * PADDING
            self.filter = nn.Parameter(torch.ones(1, fields, side, side, dtype=torch.complex64))
            seen += 2 * fields
        hidden, whole = [hidden_dim] * num_layers, seen * N * M
        self.MLP: nn.Module
        if network == "MultiMLP":
            self.MLP = nn.ModuleList(Dense([seen * N, *hidden, FEATURES]) for _ in range(M))
            self.mixer_MLP = Dense([FEATURES * M, *hidden, c_out])
        else:
            self.MLP = Dense([whole, *hidden, c_out])
        self.MLP_deforms = None
        if CCPG:
            width = [CCPG_WIDTH] * DEPTH
            self.MLP_deforms = nn.ModuleList(Dense([whole, *width, 2 * N * M]) for _ in range(n_deform))
            self.deform_weights = nn.Parameter(torch.zeros(n_deform))  # both unused, in their state dict
            self.uniform_weights = nn.Parameter(torch.ones(n_deform))
        self.INR = Dense([2, *[INR_WIDTH] * DEPTH, 2]) if coord_deform else None

    def forward(self, coordinate: Tensor, x: Tensor) -> Tensor:
        """:param torch.Tensor coordinate: (b, pixels, 2).
        :param torch.Tensor x: (b, c_in, h, w).
        :returns: (b, pixels, c_out).
        """
        return self.answer(coordinate, self.filtered(x))

    @torch.no_grad()
    def whole(self, x: Tensor, chunk: int, *, refilter: bool = False) -> Tensor:
        """Every pixel of an image, in batches of pixels.

        :param torch.Tensor x: (b, c_in, h, w).
        :param int chunk: pixels of a batch, of each image.
        :param bool refilter: filter the image again for every batch, as theirs does; without it this is faster
            than theirs and computes the same.
        :returns: (b, c_out, h, w).
        """
        b, _, h, w = x.shape
        grid = image_coordinates(h, w, dtype=x.dtype, device=x.device).expand(b, -1, -1)
        seen = None if refilter else self.filtered(x)
        parts = [self.answer(part, self.filtered(x) if seen is None else seen) for part in grid.split(chunk, 1)]
        return torch.cat(parts, 1).transpose(1, 2).reshape(b, self.c_out, h, w)

    def filtered(self, x: Tensor) -> Tensor:
        """(b, c_in, h, w) -> (b, 2 fields + c_in, h, w), the filtered image's real and imaginary parts first.

        :raises ValueError: for images that are not square or of odd size.
        """
        if self.filter is None:
            return x
        h, w = x.shape[-2:]
        if h != w or h % 2:
            raise ValueError(f"the authors' filter takes square images of even size, got {h} x {w}")
        padded = F.pad(x, (PADDING,) * 4)
        field = torch.complex(padded[:, :1], padded[:, 1:]) if x.shape[1] == 2 else padded
        response: Tensor = self.filter
        side = h + 2 * PADDING
        if response.shape[-1] != side:
            real, imaginary = (
                F.interpolate(part, size=side, mode="bicubic") for part in (response.real, response.imag)
            )
            response = torch.complex(real, imaginary)
        spectrum = torch.fft.fft2(field).repeat(1, response.shape[1] // field.shape[1], 1, 1)
        found = torch.fft.ifft2(spectrum * response)[..., PADDING : PADDING + h, PADDING : PADDING + w]
        return torch.cat([found.real, found.imag, x], 1)

    def crop(self, coordinate: Tensor, seen: Tensor, patch: Tensor) -> Tensor:
        """Patches, (b, c, pixels, N, M), for offsets (N, M, 2), (1, N, M, 2) or (b, pixels, N, M, 2)."""
        b, c, h, _ = seen.shape
        at = 2 * coordinate[:, :, None, None] + self.patch_scale * patch * (self.image_size / h)
        at = at.reshape(b, -1, self.M, 2).flip(-1)
        values = F.grid_sample(seen, at, mode="bicubic", padding_mode="reflection", align_corners=True)
        return values.reshape(b, c, -1, self.N, self.M)

    def answer(self, coordinate: Tensor, seen: Tensor) -> Tensor:
        """The output (b, pixels, c_out) from the filtered image."""
        b, pixels, _ = coordinate.shape
        if self.INR is not None:
            coordinate = self.INR(coordinate)
        patch = self.crop(coordinate, seen, self.patch)
        for deform in self.MLP_deforms or ():
            offsets = deform(patch.transpose(1, 2).reshape(b * pixels, -1))
            patch = self.crop(coordinate, seen, offsets.reshape(b, pixels, self.N, self.M, 2))
        if isinstance(self.MLP, nn.ModuleList):
            rays = patch.permute(4, 0, 2, 1, 3).reshape(self.M, b * pixels, -1)  # channel first, then ring
            found = self.mixer_MLP(torch.cat([mlp(ray) for mlp, ray in zip(self.MLP, rays, strict=True)], 1))
        else:
            found = self.MLP(patch.transpose(1, 2).reshape(b * pixels, -1))
        found = found.reshape(b, pixels, -1)
        if not self.residual_learning:
            return found
        ring, ray = self.centre
        return patch[:, : self.c_out, :, ring, ray].transpose(1, 2) - found


def start_patch(shape: str, rings: int, rays: int, image_size: int) -> Tensor:
    """Offsets [half images], (rings, rays, 2), for "square" (1, rings, rays, 2).

    :raises ValueError: for an unknown shape, or a square of even sides.
    """
    if shape == "round":
        angle = torch.arange(rays) * (2 * math.pi / rays)
        radius = torch.arange(rings) / (2 * image_size)
        return radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    if shape == "square":
        if not (rings % 2 and rays % 2):
            raise ValueError(f"the authors' square patch has odd sides, got {rings} x {rays}")
        sides = (torch.arange(-(n // 2), n // 2 + 1) / image_size for n in (rings, rays))
        return torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)[None]
    if shape == "random":
        return 2 * rings * (torch.rand(rings, rays, 2) - 0.5) / image_size
    raise ValueError(f"patch_shape must be 'round', 'square' or 'random', got {shape!r}")


def image_coordinates(
    height: int, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """The authors' coordinates of all pixels, row by row: (1, height width, 2) in [-1/2, 1/2]."""
    axes = (torch.linspace(-0.5, 0.5, n, dtype=dtype, device=device) for n in (height, width))
    return torch.cartesian_prod(*axes)[None]
