"""Decode and resize every image of a data set once: `python -m qcs.prepare dataset=...`."""

import logging
import sys
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from typing_extensions import TypedDict

from qcs.config.bounds import Pixels, Workers
from qcs.config.command import command
from qcs.config.errors import UserError, exit_status
from qcs.config.escape import terminal
from qcs.config.options import instantiate, resolve
from qcs.data import prepared

log = logging.getLogger(__name__)


class Settings(TypedDict):
    """The keys of conf/prepare.yaml."""

    dataset: dict
    augment: dict
    size: Pixels
    store: str | None
    on_error: Literal["fail", "skip"]
    num_workers: Workers
    run_dir: str


def prepare(config: dict[str, Any]) -> Path:
    """Make the store that training looks for, or go on making it; return its folder."""
    if config["store"] is None:
        raise UserError("store=null has no place to write to: store=auto, or a folder")
    manifest, base = instantiate(config["dataset"]), prepared.base(config["store"])
    options = {"on_error": config["on_error"], "num_workers": config["num_workers"]}
    try:
        folder = prepared.prepare(manifest, config["size"], base, **options)
    except KeyboardInterrupt as stop:
        print("interrupted: what is done is kept, the same command goes on", file=sys.stderr)
        sys.exit(exit_status(stop))
    skipped = prepared.skipped_images(folder)
    for image in skipped:
        log.warning("left out: %s", terminal(image["error"]))
    number, total = len(manifest) - len(skipped), len(manifest)
    log.info("%d of %d images of %d pixels in %s", number, total, config["size"], folder)
    return folder


@command("prepare")
def main(cfg: DictConfig) -> None:
    """Compose, check, prepare."""
    prepare(resolve(cfg, Settings))


if __name__ == "__main__":
    main()
