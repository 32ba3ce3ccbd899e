"""What the networks ask of their input: shapes, and the noise level in whose units they work."""

import torch
from torch import Tensor

CHUNK = 4096  # pixels worked on at once; sets the memory, not the result
CHUNK_GPU = 1 << 17
TAP_BYTES = 116  # of one of the 16 taps of a gathered point: positions, weights, indices, measured
GATHERED = 512  # coordinates worked on at once on a CPU: their patches cost far more memory than windows do


def check_image(q: Tensor, channels: int) -> None:
    """:raises ValueError: if q is not (B, channels, H, W); TypeError: if it is not real floating point."""
    if q.ndim != 4 or q.shape[1] != channels:
        raise ValueError(
            f"LoFi expects (batch, {channels}, height, width), got {tuple(q.shape)}"
            + ("; add the leading axes with x[None, None]" if q.ndim == 2 else "")
        )
    if not q.is_floating_point():
        raise TypeError(f"LoFi expects a real floating-point image, got {q.dtype}")


def check_coords(coords: Tensor, batch: int) -> None:
    """:raises ValueError: if coords are not (P, 2) or (batch, P, 2)."""
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2:
        raise ValueError(f"coords must be (P, 2) or (batch, P, 2), got {tuple(coords.shape)}")
    if coords.ndim == 3 and len(coords) not in (1, batch):
        raise ValueError(f"coords are for {len(coords)} images, got {batch} of them")


def pixel_numbers(index: Tensor, batch: int, shape: tuple[int, int]) -> Tensor:
    """Flat pixel numbers of each image, (batch, P).

    :param torch.Tensor index: (P,) or (batch, P).
    :raises ValueError: if it has another shape or a number lies outside an image of (H, W).
    """
    height, width = shape
    if index.ndim not in (1, 2) or (index.ndim == 2 and len(index) not in (1, batch)):
        raise ValueError(f"pixel numbers must be (P,) or ({batch}, P), got shape {tuple(index.shape)}")
    if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < height * width):
        raise ValueError(
            f"pixel numbers must lie in 0..{height * width - 1} for a {height} x {width} image, got "
            f"{int(index.min())}..{int(index.max())}"
        )
    return index.expand(batch, -1)


def noise_unit(sigma: float | Tensor | None, q: Tensor) -> Tensor:
    """The noise level as () or (B, 1, H, W).

    :param sigma: a number, (B,), or a map broadcastable to (B, 1, H, W) [units of q], >= 0.
    :raises ValueError: if it is missing, negative, not finite or of another shape.
    """
    if sigma is None:
        raise ValueError("this LoFi needs the noise level: call it as lofi(q, sigma)")
    noise = torch.as_tensor(sigma, dtype=q.dtype, device=q.device)
    if not bool((torch.isfinite(noise) & (noise >= 0)).all()):
        raise ValueError(f"sigma must be finite and >= 0, got {sigma}")
    if noise.numel() == 1:
        return noise.reshape(())
    if noise.ndim == 1 and len(noise) == len(q):
        return noise.reshape(-1, 1, 1, 1).expand(len(q), 1, *q.shape[-2:])
    try:
        return noise.expand(len(q), 1, *q.shape[-2:])
    except RuntimeError:
        raise ValueError(
            f"sigma must be a number, ({len(q)},) or a map ({len(q)}, 1, {q.shape[2]}, {q.shape[3]}), "
            f"got shape {tuple(noise.shape)}"
        ) from None


def divisor(noise: Tensor) -> Tensor:
    """What patches are divided by: the level, or infinity where it is zero, so that the answer there is q itself."""
    return noise.masked_fill(noise == 0, torch.inf)


def pixels_at_once(
    device: torch.device,
    chunk: int | None,
    max_memory: float | None,
    bytes_per_pixel: int,
    *,
    fixed: int = 0,
    default: int = CHUNK,
) -> int:
    """The chunk that a user's wishes come to.

    :param int chunk: pixels. float max_memory: [MB], instead of chunk.
    :param int fixed: bytes that are needed whatever the chunk; int default: chunk on a CPU, 131072 on a GPU.
    :raises ValueError: if both are given, or not one pixel fits.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least one pixel, got {chunk}")
    if max_memory is None:
        return chunk if chunk is not None else (default if device.type == "cpu" else CHUNK_GPU)
    if chunk is not None:
        raise ValueError("pass chunk or max_memory, not both")
    pixels = int((max_memory * 2**20 - fixed) // bytes_per_pixel)
    if pixels < 1:
        raise ValueError(f"max_memory = {max_memory} MB is too little for this network and image; pass more")
    return pixels
