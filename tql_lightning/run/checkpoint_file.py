"""Which file a checkpoint is, and whether it can be one; looked at before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from tql_lightning.trust.archive import ArchiveError, read_archive
from tql_lightning.trust.bounded import require_regular
from tql_lightning.trust.text import FileError

SUFFIX = ".ckpt"
LAST = f"last{SUFFIX}"
PREVIOUS = f"previous{SUFFIX}"  # the checkpoint before the last


class CheckpointError(FileError):
    """A checkpoint cannot be used; the message says why."""


def last_of(path: Path) -> Path:
    """Path of the last checkpoint, of a folder that is a run's or holds its checkpoints; else the path itself.

    Raises:
        CheckpointError: a link leads out of the folder.
    """
    own = path / LAST
    found = own if own.is_file() else path / "checkpoints" / LAST if path.is_dir() else path
    if path.is_dir() and not found.resolve().is_relative_to(path.resolve()):
        raise CheckpointError(f"checkpoint {found}: expected a file in {path}, found a link out of it; name its target")
    return found


def require_checkpoint_file(path: Path) -> None:
    """Refuses what cannot be a checkpoint: no file, or no archive as ``torch.save`` writes it.

    Raises:
        CheckpointError: the path is one of these.
    """
    try:
        if path.is_dir():
            there = next((each for each in (path / LAST, path / "checkpoints" / LAST) if each.is_file()), None)
            remedy = f"give {there}" if there else f"name a {SUFFIX} file in it"
            raise CheckpointError(f"checkpoint {path}: expected a file, found a folder; {remedy}")
        if not path.exists():
            raise CheckpointError(f"checkpoint {path}: no such file")
        require_regular(path)
        with path.open("rb") as file:
            if "data.pkl" not in read_archive(file).members:
                raise ArchiveError("its archive holds no data.pkl")
    except ArchiveError as error:
        raise CheckpointError(f"checkpoint {path}: damaged, or holds more than weights ({error})") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from error
