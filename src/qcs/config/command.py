"""The main of a command: Hydra composes its config, and errors become an exit status.

A mistake of the user (`UserError`, or an error of Hydra on the command line) is printed as one
sentence, with exit status 2. Every other exception is a bug, of this package or of the user's own
code: it is printed with its traceback, with exit status 70.
"""

import errno
import functools
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import qcs_fer
from qcs.config.commands import explanation
from qcs.config.console import let_readers_go, prepare_output
from qcs.config.errors import Failed, Terminated, UserError, exit_status, out_of_memory
from qcs.config.escape import terminal
from qcs.config.hydra_errors import explain
from qcs.config.keys import CONF
from qcs.config.overrides import (
    expand_home,
    no_choice_as_list,
    overrides_of,
    own_folder,
    quote_path,
    with_key,
)

MISTAKE, BUG = 2, 70  # exit statuses; 70 is EX_SOFTWARE of sysexits.h
# What the system may refuse, and what to do about it.
_ADVICE = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG),
    "make room or allow it, or choose another folder",
)
_PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)
_ADVICE |= dict.fromkeys(_PATHS, "name another path")
_ADVICE |= dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit, as by `ulimit -n 4096`")


def command(
    name: str, words: str | None = None
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn a function of a composed config into the main of a command, named as its file of conf/.

    In a multirun a job that fails by the user's mistake returns `Failed`, and the others go on.

    Args:
        name: of the command, a file of conf/.
        words: the key of what stands on the command line without one, as a photo's path.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def translate(error: Exception) -> str | None:
            overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
            own = own_folder(sys.argv[1:])
            return explain(error, name, [*own, *overrides])

        @functools.wraps(main)  # Hydra names the job after it
        def job(cfg: DictConfig) -> Any:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                with one_sentence(translate):
                    return main(cfg)
            try:
                return main(cfg)
            except Exception as error:
                if (text := _sentence(error, translate)) is None:
                    raise
                _print_error(error, text)
                return Failed(text)

        @functools.wraps(main)
        def start() -> None:
            let_readers_go()
            if {"-h", "--help"} & set(sys.argv[1:]):  # Hydra's own help is --hydra-help
                return print(explanation(name))
            prepare_output()
            expanded = map(expand_home, sys.argv[1:])
            sys.argv[1:] = map(quote_path, expanded)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra lets exceptions through to here
            code: CodeType = job.__code__  # type: ignore[attr-defined]  # of a function
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)
            with _terminable(), one_sentence(lambda e: translate(e) or _before_the_job(e, code)):
                if found := qcs_fer.beside_ours():
                    raise UserError(found)
                if words:
                    sys.argv[1:] = with_key(sys.argv[1:], name, words)
                overrides = overrides_of(sys.argv[1:])
                # Hydra finds no override behind a flag, as in `seed=0,1 -m model=qcs`.
                flags = [a for a in sys.argv[1:] if a not in overrides]
                sys.argv[1:] = flags + [no_choice_as_list(o, name) for o in overrides]
                run()

        return start

    return decorate


@contextmanager
def one_sentence(translate: Callable[[Exception], str | None] = lambda _: None) -> Iterator[None]:
    """End the process on an exception; a mistake of the user is printed as one sentence.

    QCS_TRACEBACK=1 prints its traceback as well.

    Args:
        translate: returns the sentence for an exception that is not a `UserError` but a mistake of
            the user all the same, or None.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        sys.exit(exit_status(stop))
    except Exception as error:
        if text := _sentence(error, translate):
            _print_error(error, text)
            sys.exit(MISTAKE)
        traceback.print_exception(error)
        print(_whose(error), file=sys.stderr)
        sys.exit(BUG)


@contextmanager
def _terminable() -> Iterator[None]:
    """End at SIGTERM as at Ctrl-C: what is open is closed, and no process is left."""

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # `timeout` sends it to a process and to its group
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield  # whoever called this decides
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception, translate: Callable[[Exception], str | None]) -> str | None:
    """The sentence for an exception that is not a bug; None for one that is."""
    if isinstance(error, UserError):  # from a loader process its traceback precedes the sentence
        return str(error).strip().rsplit("UserError: ", 1)[-1]
    return translate(error) or _refusal(error)


def _whose(error: Exception) -> str:
    """A sentence on whose bug an exception is, by the last file that belongs to no library."""
    lines = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if str(error).startswith("Caught "):  # in a loader process, whose traceback it holds as text
        lines += re.findall(r'^  File "(.+)", line (\d+)', str(error), re.M)
    source = Path(__file__).parents[2]
    ours = (f"{source / 'qcs'}{os.sep}", str(Path(qcs_fer.__file__)), f"{source / 'hydra_plugins'}")
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    for file, line in reversed(lines):
        if file.startswith(ours):
            break
        if Path(file).is_file() and not file.startswith(libraries):
            return (
                f"This comes from {terminal(file)}, line {line}, which is not part of qcs. If you "
                "think that qcs calls it wrongly, please report it with the lines above."
            )
    return (
        "This is a bug of qcs: please report it with the lines above, the command and the run's "
        "versions.json."
    )


def _print_error(error: Exception, text: str) -> None:
    hint = " (QCS_TRACEBACK=1 shows the traceback)"
    if os.environ.get("QCS_TRACEBACK"):
        traceback.print_exception(error)
        hint = ""
    print(f"error: {terminal(text)}{hint}", file=sys.stderr)


def _before_the_job(error: Exception, job: CodeType) -> str | None:
    """The sentence for what Hydra raises before it calls the job; None for a bug."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code is job for frame in frames):
        return None
    found = error if isinstance(error, OSError) else error.__cause__
    if isinstance(found, OSError):  # Hydra makes the run's folder, and a log file in it
        where = f" {found.filename}" if found.filename else ""
        return f"the run's folder{where}: {found.strerror}; choose another with hydra.run.dir=..."
    if frames[-1].f_globals["__name__"].partition(".")[0] in ("hydra", "omegaconf"):
        return str(error).strip().splitlines()[0]
    return None


def _refusal(error: Exception) -> str | None:
    """The sentence where memory is short, or the system refuses a file; None for a bug."""
    if out_of_memory(error):
        told = " ".join(str(error).split())[:200]
        sentence = "there is not enough memory: make batches, images or the network smaller"
        return f"{sentence} ({told})" if told else sentence
    if isinstance(error, OSError) and (advice := _ADVICE.get(error.errno or 0)):
        where = error.filename or "a file that was being written"
        return f"{error.strerror}: {where}; {advice}"
    return None
