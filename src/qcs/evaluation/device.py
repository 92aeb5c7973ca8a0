"""The device on which a network computes; PyTorch is asked only where that is not clear already."""

import ctypes
import os

from qcs.config.errors import UserError


def pick_device(device: str | None) -> str:
    """Return the device that is configured; by default cuda if there is one, else cpu.

    Raises:
        UserError: this machine has no such device.
    """
    if device == "cpu" or (device is None and not _has_driver()):
        return "cpu"
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    has = ["cpu"]
    if accelerator := torch.accelerator.current_accelerator(check_available=True):
        kind = accelerator.type  # cuda, mps or another
        has += [kind, *(f"{kind}:{n}" for n in range(torch.accelerator.device_count()))]
    if str(device) not in has:
        raise UserError(f"device={device} is not on this machine, which has {', '.join(has)}")
    return str(device)


def _has_driver() -> bool:
    """Whether there is a driver of NVIDIA or AMD, without which PyTorch finds no cuda."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return os.path.exists("/dev/kfd")
    return True
