"""The one exception for what a user got wrong; every other exception is a bug of ours."""


class UserError(ValueError):
    """The user's mistake, in one sentence: where it is, what came, what to do.

    It is raised where the mistake is found. The commands print the sentence and exit with status 2
    (`qcs.config.command`); in Python it can be caught as a ValueError. This module imports nothing,
    so that every room may raise it.
    """


def missing_extra(extra: str, what: str, otherwise: str = "") -> UserError:
    """Return the error that says how to install what is missing.

    Args:
        extra: of the package, as pyproject.toml names it.
        what: the user wanted that needs it, with its verb: "finding faces needs".
        otherwise: how to do without, after a semicolon.
    """
    hint = f"; {otherwise}" if otherwise else ""
    return UserError(f"{what} `pip install -e '.[{extra}]'` in the clone of this package{hint}")


class Failed(float):
    """What a job of a multirun returns that failed: not a number, and the sentence."""

    def __new__(cls, sentence: str) -> "Failed":
        self = super().__new__(cls, "nan")
        self.sentence = sentence
        return self

    def __getnewargs__(self) -> tuple[str]:
        return (self.sentence,)
