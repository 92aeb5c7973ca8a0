"""The trained networks that come with the package: `python -m qcs.zoo`.

No library is imported, so that it answers at once.
"""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from qcs.checkpoints import zoo
from qcs.config.console import let_readers_go
from qcs.config.errors import UserError

HEADER = ("name", "data", "top-1 % (95 %)", "MB", "ms a face", "sha256")
LEAST, MOST = 60, 110  # columns of the text


def table(networks: dict[str, dict[str, Any]]) -> str:
    """A line for each network: what can be told in few words."""
    rows = [HEADER]
    for name, about in networks.items():
        file = about["files"]["safetensors"]
        numbers = (f"{file['megabytes']:.1f}", f"{about['ms_a_face']['torch']:.1f}")
        rows.append((name, about["data"], accuracy(about["test"]), *numbers, file["sha256"][:12]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [zip(row, widths, strict=True) for row in rows]
    return "\n".join("  ".join(f"{c:{w}}" for c, w in row).rstrip() for row in cells)


def accuracy(figures: dict[str, Any]) -> str:
    """Top-1 in percent with its interval."""
    low, high = figures["intervals"]["acc"]
    return f"{100 * figures['acc']:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def details(name: str, about: dict[str, Any], default: str) -> str:
    """All of a network, a line or a few for each thing."""
    plain, mirrored, ms = about["test"], about["test_mirrored"], about["ms_a_face"]
    images = f"{plain['images']:,} {zoo.SPLITS[plain['split']]} images of {about['data']}"
    files = [
        f"{name}.{kind}: {file['megabytes']:.2f} MB, sha256 {file['sha256']}"
        for kind, file in about["files"].items()
    ]
    use = f'qcs predict photo.jpg ckpt={name}, or qcs.load("{name}")'
    parts = {
        "classes": ", ".join(about["class_names"]),
        "trained on": about["trained_on"],
        "figures": f"on {images}: top-1 {accuracy(plain)} %, mean class accuracy "
        f"{100 * plain['mean_acc']:.2f} %, expected calibration error {100 * plain['ece']:.2f} %; "
        f"with the mirror image (flip=true) {accuracy(mirrored)} %, "
        f"{100 * mirrored['mean_acc']:.2f} %, {100 * mirrored['ece']:.2f} %",
        "ms a face": f"{ms['torch']:.1f} with torch, {ms['onnx']:.1f} with ONNX: {ms['machine']}",
        "files": "; ".join(files),
        "licence": about["licence"],
        "made by": about["command"],
        "use": f"{use}; the default, where none is named" if name == default else use,
    }
    width = min(max(shutil.get_terminal_size((100, 24)).columns, LEAST), MOST)
    lines = [name]
    for title, text in parts.items():
        start = f"  {title:10}  "
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the table and what there is to tell of each network."""
    let_readers_go()
    parser = argparse.ArgumentParser(prog="qcs zoo", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks; all by default")
    wanted = parser.parse_args(arguments).names
    try:
        index = zoo.index()
    except UserError as error:
        sys.exit(f"error: {error}")
    networks = index["networks"]
    if strange := [name for name in wanted if name not in networks]:
        parser.error(f"there is no network {strange[0]!r}; there are {', '.join(networks)}")
    networks = {name: networks[name] for name in wanted or networks}
    blocks = [details(name, about, index["default"]) for name, about in networks.items()]
    print("\n\n".join([table(networks), *blocks]))


if __name__ == "__main__":
    main(sys.argv[1:])
