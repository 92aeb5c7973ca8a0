"""What the commands print: any text on any terminal, whatever its encoding."""

import logging
import sys

from rich.console import Console

from qcs.config.escape import terminal


class _Record(logging.LogRecord):
    """A log record whose message cannot steer the terminal; its lines stay lines."""

    def getMessage(self) -> str:
        """Return the message with the control characters of its arguments written out."""
        return "\n".join(map(terminal, super().getMessage().expandtabs(4).split("\n")))


def prepare_output() -> None:
    """Let stdout, stderr and the log take any text, for the rest of the process.

    What the encoding of the terminal lacks is written as an escape like `\\u9ad8`, and so are
    control characters in log messages.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_Record)


def console() -> Console:
    """Return a console for tables, which takes no cell for markup (`[/]`) or an emoji (`:)`)."""
    prepare_output()
    return Console(markup=False, emoji=False)
