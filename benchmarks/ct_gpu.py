"""Projection and backprojection on a GPU: 256 x 256 pixels, 256 angles, 256 detectors, batches of 128 images.

Images per second beside what torch-radon publishes, the error against float64, and how much of the card's memory
bandwidth it takes to read the input and write the result once, the least that any projector has to do.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnp_lofi.operators.radon import Radon

SIDE, ANGLES, BATCH = 256, 256, 128
REFERENCE = {  # images/s
    "source": "torch-radon's documentation, one V100; ASTRA's images go through the host",
    "forward": {"torch_radon_float32": 19_546, "torch_radon_float16": 51_861, "astra": 405},
    "backward": {"torch_radon_float32": 19_867, "torch_radon_float16": 62_963, "astra": 445},
}
COPIED = 2**30  # bytes, many times what the caches hold
CHECKED = 2  # images that are compared with float64


def rows(repeats: int = 20) -> list[dict[str, Any]]:
    """One row for each direction; none without a CUDA device.

    :param int repeats: timed calls; the fastest counts.
    """
    if not torch.cuda.is_available():
        return []
    generator = torch.Generator().manual_seed(0)
    op = Radon((SIDE, SIDE), ANGLES, SIDE, backend="triton").cuda()
    exact = Radon((SIDE, SIDE), ANGLES, SIDE, backend="free").cuda()
    x = torch.randn((BATCH, 1, SIDE, SIDE), generator=generator).cuda()
    y = torch.randn((BATCH, 1, ANGLES, SIDE), generator=generator).cuda()
    bandwidth = copy_bandwidth(repeats)
    found = []
    for direction, ours, theirs, data in (
        ("forward", op._forward, exact._forward, x),
        ("backward", op._backward, exact._backward, y),
    ):
        seconds = timed_on_gpu(lambda ours=ours, data=data: ours(data), repeats)  # type: ignore[misc]
        moved = (x.numel() + y.numel()) * x.element_size()
        row: dict[str, Any] = {"direction": direction, "side": SIDE, "angles": ANGLES, "batch": BATCH}
        row |= {"device": torch.cuda.get_device_name(), "dtype": "float32", "seconds": seconds}
        row |= {"images_per_second": BATCH / seconds, "error": _error(ours, theirs, data[:CHECKED])}
        row |= {"copy_bytes_per_second": bandwidth, "bandwidth_fraction": moved / seconds / bandwidth}
        found.append(row | {"reference": REFERENCE[direction], "reference_source": REFERENCE["source"]})
    return found


def copy_bandwidth(repeats: int) -> float:
    """What the card reads and writes per second while it copies [byte/s]."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED / timed_on_gpu(lambda: target.copy_(source), repeats)


def timed_on_gpu(call: Callable[[], Any], repeats: int, warm_up: int = 3) -> float:
    """The fastest of some calls by the device's own clock [s]; compilation is not counted."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return min(seconds)


def _error(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], data: Tensor) -> float:
    expected = theirs(data.double())
    return float((ours(data).double() - expected).norm() / expected.norm())


if __name__ == "__main__":
    measured = rows()
    print(json.dumps(measured, indent=2) if measured else "skipped: there is no CUDA device")
