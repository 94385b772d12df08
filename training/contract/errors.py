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


class StoreError(OSError):
    """An object store does not answer, or refuses; a message for the same person. Like a disk's failure it
    may have passed when the step is tried again."""


class PolicyError(MtfError):
    """A policy file is broken, or does not fit the state specification or the heads in use."""
