"""How many worker processes a machine and a number of photos are good for."""

import os
from typing import Literal

from qcs.config import threads
from qcs.config.errors import UserError

FEW = 16  # photos for a worker; fewer are read before it would have started


def workers_for(wanted: int | Literal["auto"], photos: float) -> int:
    """Return the number of workers for some photos.

    Args:
        wanted: that number; "auto" means one for each processor, which torchrun's ranks on this
            machine share, but none where that is one, and none for few photos.
        photos: how many; infinite where that is not known.

    Raises:
        UserError: the number is negative, or workers cannot be started on this system.
    """
    if wanted == "auto":
        share = threads.processors() / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        number = int(min(share, photos / FEW)) if os.name == "posix" else 0
        return number if number > 1 else 0
    if wanted < 0:
        raise UserError(f"workers={wanted} is negative: write a number, 0 for none, or auto")
    if wanted and os.name != "posix":
        raise UserError(f"workers={wanted} needs Linux or macOS: write workers=0")
    return wanted
