"""A generative prior: images of a family from a few numbers, at any resolution."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pnp_lofi.autoencoder import AutoEncoder
from pnp_lofi.checkpoint import read_tensors, write_tensors
from pnp_lofi.flow import LatentFlow
from pnp_lofi.learner import seeded
from pnp_lofi.sampling import grid_coords

FORMAT = 1


class Field(Protocol):
    """What gives values between the pixels of an image, as :meth:`pnp_lofi.lofi.LoFi.at` does: FunkNN, LIIF, or
    :class:`pnp_lofi.interpolation.Interpolator`, which learns nothing.

    One that has a true ``footprint`` is told the size of the output's pixel [pixel of q] on a grid.
    """

    def at(self, q: Tensor, coords: Tensor, **options: Any) -> Tensor:
        """q (B, C, H, W) at coords (P, 2) or (B, P, 2) in the unit square -> (B, P, C)."""


class Generator(nn.Module):
    """G(z) = decoder(flow^-1(z)): images of one family from standard normal numbers.

    :param AutoEncoder autoencoder: trained.
    :param LatentFlow flow: of its latents.
    :raises ValueError: if their latents differ.
    Source: arXiv 2212.14042, section 3.3 (auto-encoder and RealNVP).
    """

    def __init__(self, autoencoder: AutoEncoder, flow: LatentFlow) -> None:
        super().__init__()
        if autoencoder.latent != flow.latent:
            raise ValueError(f"the auto-encoder has latents of {autoencoder.latent}, the flow of {flow.latent}")
        self.autoencoder, self.flow = autoencoder, flow
        self.latent, self.size, self.channels = flow.latent, autoencoder.size, autoencoder.channels

    def decode(self, z: Tensor) -> Tensor:
        """:param torch.Tensor z: (B, latent). :returns: (B, C, size, size)."""
        return self.autoencoder.decode(self.flow.inverse(z))

    def forward(self, z: Tensor) -> Tensor:
        """As ``decode``."""
        return self.decode(z)

    def encode(self, x: Tensor) -> Tensor:
        """The z whose image is about x: (B, C, size, size) -> (B, latent)."""
        return self.flow(self.autoencoder.encode(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """log of the density of the latents of images, (B, C, size, size) -> (B,) [nat]."""
        return self.flow.log_prob(self.autoencoder.encode(x))

    @torch.no_grad()
    def sample(self, n: int, seed: int, *, temperature: float = 1.0) -> Tensor:
        """Images drawn at random.

        :param int n: how many; seed: image k follows from the seed and k.
        :param float temperature: standard deviation of z; below 1 images are more alike and cleaner.
        :returns: (n, C, size, size).
        """
        return self.decode(temperature * self.normal(n, seed))

    def normal(self, n: int, seed: int) -> Tensor:
        """The z of ``sample``, (n, latent). :raises ValueError: for n < 1."""
        if n < 1:
            raise ValueError(f"expected n >= 1 samples, got {n}")
        z = [torch.randn(self.latent, generator=seeded(seed, "sample", k)) for k in range(n)]
        return torch.stack(z).to(self.flow.mean)

    def tuned_parameters(self) -> list[nn.Parameter]:
        """What is fitted to an image after its z: the decoder's weights."""
        return self.autoencoder.decoder_parameters()


class ContinuousGenerator(nn.Module):
    """f(z) = field o G(z): the image of z at any coordinates, FunkNN o G with FunkNN for the field.

    Its image on a grid, ``f(z)``, is what operators measure.

    :param Field field: FunkNN, or any other module with such an ``at``.
    :param nn.Module generator: any module that maps z, (B, latent), to images (B, C, H, W).
    :param tuple shape: (H', W') of the grid of ``f(z)``; default: that of G(z), which is then returned as it is.
    :param int latent: numbers of a z; default: ``generator.latent``.
    :raises ValueError: if latent is given nowhere.
    """

    def __init__(
        self,
        field: Field,
        generator: Callable[[Tensor], Tensor],
        *,
        shape: tuple[int, int] | None = None,
        latent: int | None = None,
    ) -> None:
        super().__init__()
        self.field, self.generator, self.shape = field, generator, shape
        latent = latent if latent is not None else getattr(generator, "latent", None)
        if not isinstance(latent, int):
            raise ValueError(f"{type(generator).__name__} does not say how long its z are; pass latent=")
        self.latent = latent

    def at(self, z: Tensor, coords: Tensor) -> Tensor:
        """:param torch.Tensor z: (B, latent); coords: (P, 2) or (B, P, 2) in [0, 1]. :returns: (B, P, C)."""
        return self.field.at(self.generator(z), coords)

    def forward(self, z: Tensor) -> Tensor:
        """:param torch.Tensor z: (B, latent). :returns: (B, C, H', W')."""
        return self.image(z, self.shape)

    def image(self, z: Tensor, shape: tuple[int, int] | None) -> Tensor:
        """The image on a grid of any size; None: that of the generator."""
        q = self.generator(z)
        if shape is None:
            return q
        coords = grid_coords(shape, dtype=q.dtype, device=q.device)
        told = getattr(self.field, "footprint", False) is True
        options = {"footprint": (q.shape[-2] / shape[0], q.shape[-1] / shape[1])} if told else {}
        return self.field.at(q, coords, **options).transpose(1, 2).reshape(len(q), -1, *shape)

    def gradient(self, z: Tensor, coords: Tensor, *, create_graph: bool = False) -> Tensor:
        """Derivatives with respect to the coordinates, by autograd.

        :param torch.Tensor coords: (P, 2) in [0, 1].
        :param bool create_graph: so that the result can be differentiated, in z for instance.
        :returns: (B, C, 2, P) [units of x per side of the image], as :class:`pnp_lofi.operators.Derivatives` has it.
        """
        q = self.generator(z)
        places = coords.detach().expand(len(q), -1, -1).clone().requires_grad_(True)
        with torch.enable_grad():
            values = self.field.at(q, places)
            parts = [
                torch.autograd.grad(values[..., c].sum(), places, create_graph=create_graph, retain_graph=True)[0]
                for c in range(values.shape[-1])
            ]
        return torch.stack(parts, 1).transpose(2, 3)

    def tuned_parameters(self) -> list[nn.Parameter]:
        """Those of the generator; the field stays."""
        own = getattr(self.generator, "tuned_parameters", None)
        if own is not None:
            return own()
        return list(self.generator.parameters()) if isinstance(self.generator, nn.Module) else []


def save_generator(path: str | os.PathLike[str], generator: Generator, **about: Any) -> None:
    """Write a generator; ``about`` is told in the header, JSON values only."""
    configs = {"autoencoder": generator.autoencoder.config, "flow": generator.flow.config}
    header = {"format": FORMAT, "architecture": "Generator", "config": configs}
    write_tensors(path, generator.state_dict(), header | about)


def load_generator(path: str | os.PathLike[str]) -> tuple[Generator, dict[str, Any]]:
    """Read what ``save_generator`` wrote: the generator in eval mode, and the header.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is truncated, holds something else, or weights that do not fit or are not finite.
    :raises ImportError: if zuko is not installed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist; python -m pnp_lofi.recipes.generative train -o {path}")
    tensors, header = read_tensors(path)
    if header.get("architecture") != "Generator" or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds architecture {header.get('architecture')!r}, not a Generator of format {FORMAT}"
        )
    try:
        configs = header["config"]
        generator = Generator(AutoEncoder(**configs["autoencoder"]), LatentFlow(**configs["flow"]))
        generator.load_state_dict(tensors)
    except (TypeError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: the weights do not fit the architecture that its header names: {error}") from error
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise ValueError(f"{path}: NaN or inf in the weights {broken}")
    return generator.eval(), header
