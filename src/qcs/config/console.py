"""Print any text on any terminal, whatever its encoding."""

import logging
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from qcs.config.escape import terminal

if TYPE_CHECKING:
    from rich.console import Console


class _Record(logging.LogRecord):
    """A log record without control characters, except for the ends of lines."""

    def getMessage(self) -> str:
        """Return the message with the control characters of its arguments written out."""
        return "\n".join(map(terminal, super().getMessage().expandtabs(4).split("\n")))


class _Readable:
    """A stream of text whose reader, `head` say, may go away before the end: the rest is dropped.

    The command goes on, as it writes files too.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, if it is read."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            return self._drop(len(text))

    def flush(self) -> None:
        """Write what is held back, if it is read."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self, length: int = 0) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        return length


def let_readers_go() -> None:
    """Let whoever reads stdout or stderr through a pipe stop, for the rest of the process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(OSError, AttributeError):  # a stream without a file
            if not isinstance(stream, _Readable) and stat.S_ISFIFO(
                os.fstat(stream.fileno()).st_mode
            ):
                setattr(sys, name, _Readable(stream))


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
