"""The error of environments."""

from tql_lightning.trust.text import FileError


class EnvError(FileError):
    """An environment cannot be made, fails or does not fit; the message gives the reason."""
