"""Hogbom's CLEAN: the baseline that radio astronomers know. Point sources only; no prior is learned."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pnp_lofi.noise import misfit_level
from pnp_lofi.operators import Interferometer

DIVERGED = 2.0  # times the first peak
ROUNDS, STEADY = 20, 0.97  # of the noise's estimate: at most; ratio to the one before at which it counts as found
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Cleaned:
    """What CLEAN found, and why it stopped.

    :param torch.Tensor model: (H, W) components [Jy/pixel].
    :param torch.Tensor residual: (H, W) [Jy/beam].
    :param str status: "noise" or "relative", the limit that the peak fell below; "limit" (iterations used up);
        "diverged" (the peak grew: psf and dirty image do not belong together).
    :param int iterations: done.
    :param float peak: largest residual that might have been taken next [Jy/beam].
    :param float threshold: where it was to stop [Jy/beam].
    :param float noise: known, or estimated [Jy/beam]; None where nobody asked.
    """

    model: Tensor
    residual: Tensor
    status: Literal["noise", "relative", "limit", "diverged"]
    iterations: int
    peak: float
    threshold: float
    noise: float | None

    @property
    def reason(self) -> str:
        """Why it stopped, in words."""
        peak, threshold = f"peak {self.peak:.4g} Jy/beam", f"{self.threshold:.4g}"
        return {
            "noise": f"{peak} is below the noise's threshold of {threshold}",
            "relative": f"{peak} is below the fraction of the first peak that was asked for, {threshold}",
            "limit": f"{self.iterations} iterations are used up: {peak}, threshold {threshold}",
            "diverged": f"{peak} is more than {DIVERGED:g} times the first peak; is the psf that of the dirty image?",
        }[self.status]


def hogbom(
    dirty: Tensor,
    psf: Tensor,
    *,
    noise: float | None = None,
    n_sigma: float = 3.0,
    relative: float = 0.0,
    gain: float = 0.1,
    max_iter: int = 10000,
    mask: Tensor | Box | None = None,
    nonneg: bool = False,
) -> Cleaned:
    """Take the largest pixel p of the residual, at place d: model[d] += gain p, residual -= gain p psf(. - d).

    Runs on the CPU, one thread; what it returns is on the dirty image's device. No major cycles: the residual is exact
    for data without w-term, and drifts by float rounding only.

    :param torch.Tensor dirty: (H, W) [Jy/beam].
    :param torch.Tensor psf: peak of 1 at its pixel N//2, at least (2 H, 2 W): ``op.psf((2 * H, 2 * W))``.
    :param float noise: rms of the dirty image's noise [Jy/beam]; with n_sigma > 0 it is needed.
    :param float n_sigma: stop when the peak is below this times the noise; 0: never.
    :param float relative: stop when the peak is below this fraction of the first; 0: never.
    :param float gain: loop gain, in (0, 1]; int max_iter: most iterations.
    :param mask: where components may lie: (H, W) bool, or a box (first row, last + 1, first column, last + 1).
    :param bool nonneg: only positive peaks are taken, so that the model is nonnegative.
    :raises ValueError: for other shapes, a psf too small, an empty mask, arguments out of range.
    Source: Hogbom 1974, A&AS 15, 417.
    """
    _check(dirty, psf, noise, n_sigma, relative, gain, max_iter)
    H, W = dirty.shape
    beam = psf.detach().to("cpu", dirty.dtype).contiguous()
    middle = (beam.shape[0] // 2, beam.shape[1] // 2)
    residual = dirty.detach().to("cpu", copy=True).contiguous()
    model = torch.zeros((H, W), dtype=torch.float64)
    search = _Search(residual.numpy(), mask, nonneg)
    first, iterations = abs(search.largest()[2]), 0
    to_noise = n_sigma * (noise or 0.0)
    threshold = max(to_noise, relative * first)
    while True:
        r, c, value = search.largest()
        peak = value if nonneg else abs(value)
        if peak <= threshold or iterations == max_iter or peak > DIVERGED * first:
            break
        model[r, c] += gain * value
        window = beam[middle[0] - r : middle[0] - r + H, middle[1] - c : middle[1] - c + W]
        residual.sub_(window, alpha=gain * value)
        iterations += 1
    if peak <= threshold:
        status = "noise" if to_noise >= relative * first else "relative"
    else:
        status = "diverged" if peak > DIVERGED * first else "limit"
    model, residual = model.to(dirty.device, dirty.dtype), residual.to(dirty.device)
    return Cleaned(model, residual, status, iterations, peak, threshold, noise)  # type: ignore[arg-type]


def clean(op: Interferometer, y: Tensor, *, spread: float = 1.0, max_iter: int = 10000, **options: Any) -> Cleaned:
    """:func:`hogbom` on an operator's dirty image and beam, with its noise level if it has one.

    Where the noise is needed and not known it is the fixed point of: clean down to the noise, take the rms of what the
    model leaves of the data for it. That counts as noise what no points explain, errors of calibration too.

    :param torch.Tensor y: data of the operator, whitened, one image.
    :param float spread: noise of the dirty image over :meth:`Interferometer.dirty_noise` of the data's mean noise: not
        1 with uniform or Briggs weights.
    :param int max_iter: most iterations, of all rounds together.
    :param options: of :func:`hogbom`.
    :raises ValueError: if y holds more than one image.
    """
    dirty = op.dirty(y)
    if dirty.numel() != dirty.shape[-2] * dirty.shape[-1]:
        raise ValueError(f"clean takes one image, got a batch of dirty images {tuple(dirty.shape)}; call it for each")
    if op.sigma is not None:
        options = {"noise": op.dirty_noise() * spread} | options
    H, W = op.shape
    beam = op.psf((2 * H, 2 * W), dtype=dirty.dtype)
    if options.get("noise") is not None or options.get("n_sigma") == 0:
        return hogbom(dirty[0, 0], beam, max_iter=max_iter, **options)
    return _to_unknown_noise(op, y, dirty[0, 0], beam, spread, max_iter, options)


def _to_unknown_noise(
    op: Interferometer, y: Tensor, dirty: Tensor, beam: Tensor, spread: float, left: int, options: dict[str, Any]
) -> Cleaned:
    options, model, done, level, residual = options.copy(), torch.zeros_like(dirty), 0, math.inf, dirty
    fraction = options.pop("relative", 0.0) * float(dirty.abs().max())
    for _ in range(ROUNDS):
        before, level = level, misfit_level(op, y, model[None, None])
        noise, peak = op.dirty_noise(level) * spread, float(residual.abs().max())
        relative = min(fraction / peak, 1 - 1e-9) if peak > 0 else 0.0
        found = hogbom(residual, beam, noise=noise, relative=relative, max_iter=left - done, **options)
        model, residual, done = model + found.model, found.residual, done + found.iterations
        if found.status != "noise" or level > STEADY * before:
            break
    return replace(found, model=model, iterations=done)


class _Search:
    """The largest pixel of a residual within a mask; the residual changes in place."""

    def __init__(self, residual: np.ndarray, mask: Tensor | Box | None, nonneg: bool) -> None:
        self.nonneg, self.mask = nonneg, None
        box = (0, residual.shape[0], 0, residual.shape[1])
        if isinstance(mask, Tensor):
            if mask.dtype != torch.bool or mask.shape != residual.shape:
                raise ValueError(f"mask must be bool {residual.shape}, got {mask.dtype} {tuple(mask.shape)}")
            if not bool(mask.any()):
                raise ValueError("the mask is empty; mark where components may lie")
            rows, columns = np.nonzero(mask.cpu().numpy())
            box = (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
            self.mask = mask.cpu().numpy()[box[0] : box[1], box[2] : box[3]].astype(residual.dtype)
            self.mask = None if self.mask.all() else self.mask
        elif mask is not None:
            box = mask
            H, W = residual.shape
            if len(box) != 4 or not (0 <= box[0] < box[1] <= H and 0 <= box[2] < box[3] <= W):
                raise ValueError(
                    f"a box is (first row, last + 1, first column, last + 1) inside the image {(H, W)}, got {box}"
                )
        self.first = (box[0], box[2])
        self.view = residual[box[0] : box[1], box[2] : box[3]]
        self.whole = self.view.shape == residual.shape and self.mask is None
        self.buffer = np.empty_like(self.view, order="C")

    def largest(self) -> tuple[int, int, float]:
        """Row, column and value."""
        seen = self.view
        if self.mask is not None:
            seen = np.multiply(self.view, self.mask, out=self.buffer)
        elif not self.whole:
            np.copyto(self.buffer, self.view)
            seen = self.buffer
        flat = seen.reshape(-1)
        k = int(flat.argmax())
        if not self.nonneg and -flat[low := int(flat.argmin())] > flat[k]:
            k = low
        r, c = divmod(k, seen.shape[1])
        return r + self.first[0], c + self.first[1], float(flat[k])


def _check(
    dirty: Tensor, psf: Tensor, noise: float | None, n_sigma: float, relative: float, gain: float, max_iter: int
) -> None:
    if dirty.ndim != 2 or not dirty.is_floating_point() or not bool(torch.isfinite(dirty).all()):
        raise ValueError(f"dirty must be (H, W), real and finite, got {tuple(dirty.shape)} {dirty.dtype}")
    if psf.ndim != 2 or any(p < 2 * n for p, n in zip(psf.shape, dirty.shape, strict=True)):
        wanted = tuple(2 * n for n in dirty.shape)
        raise ValueError(f"psf must be at least {wanted}, got {tuple(psf.shape)}; use op.psf({wanted})")
    if not abs(float(psf[psf.shape[0] // 2, psf.shape[1] // 2]) - 1) < 1e-3:
        raise ValueError("psf must have its peak of 1 at its pixel N//2; use op.psf")
    if not 0 < gain <= 1 or max_iter < 0 or not n_sigma >= 0 or not 0 <= relative < 1:
        raise ValueError(
            f"expected 0 < gain <= 1, max_iter >= 0, n_sigma >= 0, 0 <= relative < 1, got {gain}, {max_iter}, "
            f"{n_sigma}, {relative}"
        )
    if noise is None and n_sigma > 0:
        raise ValueError("the noise is not known; pass noise [Jy/beam], n_sigma=0, or use clean(op, y), which finds it")
    if noise is not None and not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be finite and >= 0 Jy/beam, got {noise}")
