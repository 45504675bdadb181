"""The error of environments, apart from what raises it."""

from tql_lightning.trust.text import FileError


class EnvError(FileError):
    """An environment cannot be made, fails or does not fit; the message gives the reason."""
