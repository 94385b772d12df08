"""Errors meant for the person who has to act on them: what was expected, what came, where."""

_LONGEST = 2_000  # characters of a line; what a cell or a name of 100,000 leaves out is in its middle
_END = 700


def _one_line(text: str) -> str:
    """The text as a line that a console shows: a value's own newlines as ``\\n``, a long one cut."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _END]} … {text[-_END:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class MtfError(Exception):
    """Base of every error this project raises on purpose; its message is fit to show a user.

    Each of ``lines`` is a line of its own, whatever is in the values that it quotes.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(_one_line, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class SettingsError(MtfError):
    """The settings file (or an environment override) is wrong; the message names file and line."""


class DataError(MtfError):
    """A file, table or row breaks a contract; retrying the same step cannot help.

    ``breaks`` is the part of the contract of a landing that is broken, where one is: a key of
    :data:`training.validation.refusals.CONTRACT`.
    """

    def __init__(self, message: str, breaks: str | None = None) -> None:
        super().__init__(message)
        self.breaks = breaks


class InServiceError(MtfError):
    """What is in service cannot be known or changed now; the message says whether it may have been."""


class ObjectStoreError(OSError):
    """An object store does not answer, or refuses; a message for the same person. Like a disk's failure it
    may have passed when the step is tried again."""


class StorageError(MtfError, OSError):
    """A disk is full, may only be read, or is not ours to write; the message names the path.

    Another try helps once that has ended: nothing is wrong with the data.
    """


class PolicyError(MtfError):
    """A policy file is broken, or does not fit the state specification or the heads in use."""
