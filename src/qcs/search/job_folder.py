"""The name of a job's folder in a multirun: its overrides, as far as a file system takes them."""

import hashlib
import re

LONGEST = 120  # characters


def job_folder(overrides: str, number: int) -> str:
    """Return the name of a folder, such as `model=qcs,optimizer.lr=0.001`.

    Signs other than ASCII letters, digits and `.=,+-_` become `_`. A name that was changed or
    shortened ends with a digest, so that other overrides have another name.

    Args:
        overrides: those that tell the jobs apart, as Hydra's `override_dirname` writes them.
        number: of the job, which names it where there are none.
    """
    name = re.sub(r"[^\w.=,+-]+", "_", overrides, flags=re.ASCII)[:LONGEST].rstrip(".")
    if name != overrides:
        name += f"-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return name or str(number)
