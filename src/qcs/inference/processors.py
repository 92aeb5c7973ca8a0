"""How many worker processes a machine and a number of photos are good for."""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

from qcs.config.errors import UserError

FEW = 16  # photos for a worker; fewer are read before it would have started
CGROUPS = Path("/sys/fs/cgroup")


def workers_for(wanted: int | Literal["auto"], photos: float) -> int:
    """Return the number of workers for some photos.

    Args:
        wanted: that number; "auto" means one for each processor, but none where that is one, and
            none for few photos.
        photos: how many; infinite where that is not known.

    Raises:
        UserError: the number is negative, or workers cannot be started on this system.
    """
    if wanted == "auto":
        number = int(min(processors(), photos / FEW)) if os.name == "posix" else 0
        return number if number > 1 else 0
    if wanted < 0:
        raise UserError(f"workers={wanted} is negative: write a number, 0 for none, or auto")
    if wanted and os.name != "posix":
        raise UserError(f"workers={wanted} needs Linux or macOS: write workers=0")
    return wanted


def processors() -> int:
    """The number of processors that this process may use, by its affinity and its cgroup."""
    own = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for name in ("cpu.max", "cpu/cpu.cfs_quota_us"):  # of versions 2 and 1
        with suppress(OSError, ValueError, IndexError):
            quota, *period = (CGROUPS / name).read_text().split()
            if not period:
                period = [(CGROUPS / "cpu/cpu.cfs_period_us").read_text()]
            if int(quota) > 0:
                own = min(own, math.ceil(int(quota) / int(period[0])))
    return max(own, 1)
