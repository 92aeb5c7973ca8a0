"""Text for a reader that may go away."""

import logging
import os
import sys

from qcs.config.console import console, let_readers_go


def test_a_command_goes_on_where_nobody_reads_on(monkeypatch, capsys):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    let_readers_go()
    log = logging.Logger("test")
    log.addHandler(logging.StreamHandler(sys.stdout))
    os.close(reader)
    for write in (log.warning, console().print, print):
        write("a line")
    sys.stdout.flush()
    stream.close()  # as at the end of the process
    assert capsys.readouterr().err == ""
