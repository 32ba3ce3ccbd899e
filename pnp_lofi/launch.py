"""The device that a process works on, and its peers where torchrun started several."""

import os

import torch
import torch.distributed as dist


def working_device(asked: str | None = None) -> torch.device:
    """Join the processes of torchrun, if there are any, and say where this one works.

    :param str asked: "cpu", "cuda" or "cuda:N"; default: a GPU if there is one. Under torchrun each process of a
        machine takes a GPU of its own.
    :raises ValueError: for a device that is not there, or fewer GPUs than processes on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(asked or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise ValueError(f'the device is "cpu", "cuda" or "cuda:N", got {asked!r}') from None
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device {asked!r} was asked for, and PyTorch sees {gpus} CUDA GPUs here; pass --device cpu")
    if "LOCAL_RANK" not in os.environ:
        return device
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= gpus:
            raise ValueError(f"process {local} of this machine has no GPU: there are {gpus}; start as many processes")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device
