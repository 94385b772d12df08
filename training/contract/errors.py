"""Errors meant for the person who has to act on them: what was expected, what came, where."""


class MtfError(Exception):
    """Base of every error this project raises on purpose; its message is fit to show a user."""


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


class StorageError(MtfError, OSError):
    """A disk is full, may only be read, or is not ours to write; the message names the path.

    Another try helps once that has ended: nothing is wrong with the data.
    """


class PolicyError(MtfError):
    """A policy file is broken, or does not fit the state specification or the heads in use."""
