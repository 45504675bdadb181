"""Hands pictures and videos to files and to whatever logger can show them."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tql_lightning.system.files import write_whole

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
MOST_FRAMES, WIDEST = 120, 240  # of an animation, in frames and pixels


def save_figure(figure: Figure, path: Path, loggers: Sequence[Logger], key: str, update: int) -> None:
    """Writes a figure as PNG, whole or not at all, and logs it.

    Args:
        figure: that is finished.
        path: of the PNG.
        loggers: to show it; see `log_picture`.
        key: it is logged under.
        update: that it is of.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    with write_whole(path) as file:
        file.write(drawn.getvalue())
    log_picture(loggers, key, path, update)


def log_picture(loggers: Sequence[Logger], key: str, path: Path, update: int) -> None:
    """Shows a PNG in every logger that can, as `log_video` does an MP4; W&B's method is ``log_image``."""
    _log("image", _add_picture, loggers, key, path, update)


def log_video(loggers: Sequence[Logger], key: str, path: Path, update: int) -> None:
    """Shows an MP4 in every logger that can: W&B and whatever has its ``log_video``, TensorBoard (as GIF), MLflow.

    Args:
        loggers: of the trainer; those that cannot show such files are passed over.
        key: it is logged under.
        path: of the file.
        update: that it is of.
    """
    _log("video", _add_animation, loggers, key, path, update)


def _log(
    kind: Literal["image", "video"],
    add: Callable[[Any, str, Path, int], None],
    loggers: Sequence[Logger],
    key: str,
    path: Path,
    update: int,
) -> None:
    """Shows a file of a kind in every logger that can; ``add`` shows it to TensorBoard's writer."""
    for logger in loggers:
        experiment: Any = logger.experiment if hasattr(logger, "experiment") else None
        if hasattr(logger, f"log_{kind}"):  # W&B
            getattr(logger, f"log_{kind}")(key=key, **{f"{kind}s": [str(path)]}, step=update)
        elif hasattr(experiment, f"add_{kind}"):  # TensorBoard
            add(experiment, key, path, update)
        elif hasattr(experiment, "log_artifact"):  # MLflow
            experiment.log_artifact(getattr(logger, "run_id", None), str(path), artifact_path=key)


def _add_picture(writer: Any, key: str, path: Path, update: int) -> None:
    writer.add_image(key, read_picture(path), update, dataformats="HWC")


def _add_animation(writer: Any, key: str, path: Path, update: int) -> None:
    """TensorBoard shows no videos, but GIFs as pictures; its own ``add_video`` needs an old moviepy to make one."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    encoded, (width, height) = animation(path)
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=key, image=image)]), update)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) of a PNG."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def animation(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A video as a GIF of as many seconds, with fewer and smaller frames: the file, and its width and height."""
    from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

    frames, seconds = count_frames_and_secs(str(path))
    filters = f"fps={min(frames, MOST_FRAMES) / seconds},scale='min({WIDEST},iw)':-2,split[a][b]"
    filters += ";[a]palettegen[colors];[b][colors]paletteuse"
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-filter_complex", filters, "-f", "gif", "-"]
    made = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return made, struct.unpack("<HH", made[6:10])
