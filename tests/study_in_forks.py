"""What tests/integration/test_study.py runs: scripts/study.py, whose runs are forks.

They need not import the libraries again. One test starts a run in a process of its own.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import test_train

popen, context = subprocess.Popen, multiprocessing.get_context("fork")


class Fork:
    """What the study uses of a `subprocess.Popen` of `python -m COMMAND`."""

    def __init__(self, command: list[str], stdout, env: dict[str, str], **_) -> None:
        self.process = context.Process(target=self.run, args=(command, stdout.name, env))
        self.process.start()

    def run(self, command: list[str], output: str, env: dict[str, str]) -> None:
        subprocess.Popen = popen
        os.environ.update(env)
        test_train.main(command[2], tuple(command[3:]), Path.cwd(), output, output)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> None:
        self.process.join()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    returncode = property(poll)


if __name__ == "__main__":
    subprocess.Popen = lambda command, **options: (
        Fork if command[:2] == [sys.executable, "-m"] else popen
    )(command, **options)
    script = Path(__file__).parents[1] / "scripts/study.py"
    runpy.run_path(str(script), run_name="__main__")
