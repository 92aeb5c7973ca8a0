"""The one exception for mistakes of the user; every other exception is a bug of this package."""


class UserError(ValueError):
    """A mistake of the user, in one sentence: where it is, what was given, what to do.

    It is raised where the mistake is found. The commands print the sentence and exit with status 2
    (`qcs.config.command`); in Python it can be caught as a ValueError. This module imports nothing,
    so that every other module may import it.
    """


def missing_extra(extra: str, what: str, otherwise: str = "") -> UserError:
    """Return the error that says how to install what is missing.

    Args:
        extra: of the package, as pyproject.toml names it.
        what: the feature that needs it, with a verb, as "finding faces needs".
        otherwise: how to do without it, which follows after a semicolon.
    """
    hint = f"; {otherwise}" if otherwise else ""
    return UserError(f"{what} `pip install -e '.[{extra}]'` in the clone of this package{hint}")


def reason(error: Exception) -> str:
    """Return what went wrong in a few words, without the name of the file."""
    if isinstance(error, MemoryError):
        return "too little memory"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, for which the libraries on a CPU have no kind of error."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "allocate memory" in str(error)


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which the system and SLURM stop a process; it ends as after Ctrl-C."""


def exit_status(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a process that was stopped: 130 by Ctrl-C, 143 by SIGTERM."""
    return 143 if isinstance(stop, Terminated) else 130


class Failed(float):
    """The result of a job of a multirun that failed: not a number, with the reason.

    It is a float, because Hydra's sweepers expect one.
    """

    sentence: str

    def __new__(cls, sentence: str) -> "Failed":
        self = super().__new__(cls, "nan")
        self.sentence = sentence
        return self

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # for pickle
        return (self.sentence,)
