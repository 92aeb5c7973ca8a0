"""Print any text on any terminal, whatever its encoding."""

import logging
import os
import sys
from typing import TYPE_CHECKING

from qcs.config.escape import terminal

if TYPE_CHECKING:
    from rich.console import Console


class _Record(logging.LogRecord):
    """A log record without control characters, except for the ends of lines."""

    def getMessage(self) -> str:
        """Return the message with the control characters of its arguments written out."""
        return "\n".join(map(terminal, super().getMessage().expandtabs(4).split("\n")))


def prepare_output() -> None:
    """Prepare stdout, stderr and the log for any text, for the rest of the process.

    Characters that the encoding of the terminal lacks are written as escapes like `\\u9ad8`, and so
    are control characters in log messages.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Record)


def console() -> "Console":
    """Return a console that prints `[/]` and `:)` as they are, not as markup or an emoji."""
    from rich.console import Console  # slow to import, and `qcs --help` answers without it

    prepare_output()
    return Console(markup=False, emoji=False)


def show(text: str) -> None:
    """Print a text, of which the reader, `head` say, may not want to see the end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the flush at the end
