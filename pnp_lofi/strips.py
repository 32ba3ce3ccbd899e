"""Images larger than one machine: several processes hold strips of rows, and what they tell each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pnp_lofi.checks import checked_shape

BLOCK = 2**20  # random numbers drawn at a time
VECTOR = 16  # torch's generator works in vectors of as many numbers: blocks of it give what one draw gives
REDUCTIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX} if dist.is_available() else {}


class Strips:
    """The rows [start, stop) of an (H, W) image that this process holds; the others hold the others.

    Started by torchrun after ``torch.distributed.init_process_group()``; without a process group there is one strip,
    the whole image, so that a script runs alone as well. Every method that tells something to the others has to be
    called by all processes: one that stops with an error leaves the others waiting, which torchrun ends. Images are on
    a device that the group's backend carries (gloo: CPU, NCCL: CUDA). Nothing here is differentiated.

    :param tuple shape: (H, W) of the whole image; strips differ by one row at most.
    :param group: processes of torch.distributed that share the image; default all.
    :raises ValueError: if there are more processes than rows, or this one is not of the group.
    """

    def __init__(self, shape: Sequence[int], group: Any = None) -> None:
        self.shape, self.group = checked_shape(shape), group
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(group), dist.get_world_size(group)) if together else (0, 1)
        if self.rank < 0:
            raise ValueError("this process is not in the group that shares the image; leave it out of the work")
        if self.world > self.shape[0]:
            raise ValueError(f"{self.world} processes cannot share {self.shape[0]} rows; start fewer of them")
        self.bounds = _even(self.shape[0], self.world)
        self.start, self.stop = self.bounds[self.rank], self.bounds[self.rank + 1]

    @property
    def rows(self) -> slice:
        """Of the whole image, held here."""
        return slice(self.start, self.stop)

    @property
    def strip_shape(self) -> tuple[int, int]:
        """(h, W) of what is held here."""
        return self.stop - self.start, self.shape[1]

    def scatter(self, full: Tensor | None) -> Tensor:
        """The rows of this process of an image that the first one holds.

        :param torch.Tensor full: (..., H, W) on the first process, not looked at on the others, where it may be None.
        :returns: (..., h, W).
        :raises ValueError: if it is of another shape, in all of them.
        """
        about: list[Any] = [(tuple(full.shape), full.dtype, full.device.type) if isinstance(full, Tensor) else None]
        if self.world > 1:
            dist.broadcast_object_list(about, group=self.group, group_src=0)
        if about[0] is None or about[0][0][-2:] != self.shape:
            H, W = self.shape
            raise ValueError(f"scatter expects (..., {H}, {W}) on the first process, got {about[0]}")
        lead, dtype, device = about[0][0][:-2], about[0][1], about[0][2]
        if self.rank > 0:
            mine = torch.empty((*lead, *self.strip_shape), dtype=dtype, device=device)
            return self._exchange({}, {0: mine})[0]
        assert full is not None
        self._exchange({k: full[..., rows, :] for k, rows in self._all_rows() if k > 0}, {})
        return full[..., self.rows, :].clone()

    def gather(self, strip: Tensor, *, everywhere: bool = False) -> Tensor | None:
        """The whole image, on the first process or in all of them.

        :param torch.Tensor strip: (..., h, W).
        :returns: (..., H, W); None where it is not gathered.
        """
        self._check(strip)
        lead, mine = strip.shape[:-2], range(self.world) if everywhere else range(1)
        others = [k for k in range(self.world) if k != self.rank]
        parts = {self.rank: strip}
        if self.rank in mine:
            sizes = {k: rows.stop - rows.start for k, rows in self._all_rows()}
            parts |= {k: strip.new_empty((*lead, sizes[k], self.shape[1])) for k in others}
        self._exchange({k: strip for k in others if k in mine}, {k: parts[k] for k in others if k in parts})
        return torch.cat([parts[k] for k in range(self.world)], -2) if self.rank in mine else None

    def halo(self, strip: Tensor, reach: int) -> Tensor:
        """The strip with up to ``reach`` rows of the neighbours on either side, none beyond the image's true borders.

        :param torch.Tensor strip: (..., h, W).
        :returns: (..., h + above + below, W), see :meth:`above`.
        :raises ValueError: if a strip has fewer rows than that, in all processes.
        """
        self._check(strip)
        self.check_reach(reach)
        if self.world == 1 or reach == 0:
            return strip
        lead, W = strip.shape[:-2], self.shape[1]
        send, receive = {}, {}
        if self.rank > 0:
            send[self.rank - 1] = strip[..., :reach, :]
            receive[self.rank - 1] = strip.new_empty((*lead, reach, W))
        if self.rank < self.world - 1:
            send[self.rank + 1] = strip[..., strip.shape[-2] - reach :, :]
            receive[self.rank + 1] = strip.new_empty((*lead, reach, W))
        parts = self._exchange(send, receive) | {self.rank: strip}
        return torch.cat([parts[k] for k in sorted(parts)], -2)

    def above(self, reach: int) -> int:
        """Rows that :meth:`halo` puts before the strip."""
        return reach if self.rank > 0 else 0

    def check_reach(self, reach: int) -> None:
        """:raises ValueError: if a strip has fewer rows than ``reach``."""
        H, thinnest = self.shape[0], self.shape[0] // self.world
        if self.world > 1 and reach > thinnest:
            raise ValueError(
                f"{self.world} processes hold strips of {thinnest} rows of an image of {H}, what is asked reaches "
                f"{reach} rows; start at most {max(1, H // reach)} processes"
            )

    def total(self, t: Tensor, op: str = "sum") -> Tensor:
        """The sum ("sum") or the largest ("max") over the processes, element by element, the same in all of them.

        :raises ValueError: for another op.
        """
        if op not in ("sum", "max"):
            raise ValueError(f'op must be "sum" or "max", got {op!r}')
        if self.world == 1:
            return t
        shared = t.detach().clone(memory_format=torch.contiguous_format)
        if dist.get_backend(self.group) == "nccl":  # which does not carry what is on the CPU
            shared = shared.cuda()
        dist.all_reduce(torch.view_as_real(shared) if t.is_complex() else shared, REDUCTIONS[op], self.group)
        return shared.to(t.device)

    def to_columns(self, t: Tensor) -> Tensor:
        """Strips of rows, (..., h, n), to strips of columns, (..., H, n_k); n is split evenly among the processes."""
        self._check(t, columns=False)
        if self.world == 1:
            return t
        bounds, mine = _even(t.shape[-1], self.world), t.shape[:-2]
        width = bounds[self.rank + 1] - bounds[self.rank]
        send = {k: t[..., bounds[k] : bounds[k + 1]] for k in range(self.world)}
        receive = {k: t.new_empty((*mine, rows.stop - rows.start, width)) for k, rows in self._all_rows()}
        return self._swap(send, receive, -2)

    def to_rows(self, t: Tensor, columns: int) -> Tensor:
        """The inverse of :meth:`to_columns`: (..., H, n_k) to (..., h, n).

        :param int columns: n.
        """
        if self.world == 1:
            return t
        bounds, mine = _even(columns, self.world), t.shape[:-2]
        height = self.stop - self.start
        send = {k: t[..., rows, :] for k, rows in self._all_rows()}
        receive = {k: t.new_empty((*mine, height, bounds[k + 1] - bounds[k])) for k in range(self.world)}
        return self._swap(send, receive, -1)

    def everyones(self, t: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
        """A tensor of each process in turn, in all of them.

        :param torch.Tensor t: (..., m) of this process.
        :param sizes: m of each process; those with none are passed over.
        """
        for k, m in enumerate(sizes):
            if m:
                theirs = t.contiguous() if k == self.rank else t.new_empty((*t.shape[:-1], m))
                if self.world > 1:
                    dist.broadcast(theirs, group=self.group, group_src=k)
                yield theirs

    def normal(self, lead: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """This process's rows of ``torch.randn((*lead, H, W))``, in the memory of a strip and a block.

        All draw all numbers and keep theirs, so that the image does not depend on how many processes there are.

        :param torch.Generator generator: of the CPU, in the same state everywhere.
        :returns: (*lead, h, W) on the CPU.
        """
        count, (H, W) = math.prod(lead), self.shape
        kept = torch.empty((count, (self.stop - self.start) * W), dtype=dtype)
        for first, size in _blocks(count * H * W):
            drawn = torch.randn(size, dtype=dtype, generator=generator)
            for image in range(first // (H * W), (first + size - 1) // (H * W) + 1):
                begin = image * H * W + self.start * W  # of ours among all numbers
                low, high = max(first, begin), min(first + size, begin + kept.shape[1])
                if low < high:
                    kept[image, low - begin : high - begin] = drawn[low - first : high - first]
        return kept.reshape(*lead, *self.strip_shape)

    # ---- below -------------------------------------------------------------------------------------------

    def _all_rows(self) -> Iterator[tuple[int, slice]]:
        return ((k, slice(self.bounds[k], self.bounds[k + 1])) for k in range(self.world))

    def _swap(self, send: dict[int, Tensor], receive: dict[int, Tensor], axis: int) -> Tensor:
        """All to all, put together along an axis."""
        parts = {self.rank: send.pop(self.rank)}
        del receive[self.rank]
        parts |= self._exchange(send, receive)
        return torch.cat([parts[k] for k in range(self.world)], axis)

    def _exchange(self, send: Mapping[int, Tensor], receive: dict[int, Tensor]) -> dict[int, Tensor]:
        """Send to some processes and fill what comes from others; of every backend the one thing that is needed."""
        ops = []
        for call, tensors in ((dist.isend, send), (dist.irecv, receive)):
            for k, t in tensors.items():
                real = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
                if real.numel():
                    ops.append(dist.P2POp(call, real.detach().contiguous(), group=self.group, group_peer=k))
        for request in dist.batch_isend_irecv(ops) if ops else ():
            request.wait()
        return receive

    def _check(self, t: Tensor, *, columns: bool = True) -> None:
        h, W = self.strip_shape
        if t.ndim < 2 or t.shape[-2] != h or (columns and t.shape[-1] != W):
            raise ValueError(
                f"process {self.rank} holds rows {self.start} to {self.stop} of {self.shape}: expected "
                f"(..., {h}, {W if columns else 'n'}), got {tuple(t.shape)}; take image[..., strips.rows, :]"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Strips":
        return self  # nothing in it changes, and a process group cannot be copied

    def __repr__(self) -> str:
        return f"Strips({self.shape}, rows {self.start} to {self.stop}, process {self.rank} of {self.world})"


def _even(n: int, parts: int) -> list[int]:
    """Bounds of an even split."""
    return [k * n // parts for k in range(parts + 1)]


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    """(first, size) of blocks whose numbers are those of one draw: the last takes what is less than a vector."""
    first = 0
    while first < total:
        size = BLOCK if total - first >= BLOCK + VECTOR else total - first
        yield first, size
        first += size
