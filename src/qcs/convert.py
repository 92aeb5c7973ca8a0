"""The authors' checkpoints as ours: `python -m qcs.convert official.pth out.ckpt`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from qcs.checkpoints.official import DATASETS, TITLES, convert
from qcs.config.command import one_sentence
from qcs.config.hints import command_line

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m qcs.convert", description=__doc__)
    parser.add_argument("official", help="the authors' file")
    parser.add_argument("out", help="the checkpoint to write")
    parser.add_argument("--dataset", choices=DATASETS, help="where nothing in the file tells it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_sentence():
        made = convert(options.official, options.out, options.dataset)
        names = made.recipe["class_names"]
        title, classes = TITLES[made.model], ", ".join(names)
        log.info("%s: %s, %d classes: %s", options.out, title, len(names), classes)
        command = command_line("qcs.eval", {"ckpt": options.out, "dataset": made.dataset})
        log.info("try it: %s dataset.path=...", command)


if __name__ == "__main__":
    main(sys.argv[1:])
