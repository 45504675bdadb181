"""Writes pictures and passes pictures and videos to the loggers that can show them."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tql_lightning.run.folder import dark_twin
from tql_lightning.system.files import write_whole
from tql_lightning.system.private_api import add_summary

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110
FONT_SIZE = 11
DARK_LINES = ("#6cb2f2", "#f59a56", "#4fc9a0")
INK, CARD = "#e9ecef", "#1c2026"  # of the report's dark scheme
DARK: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
DARK |= {"axes.edgecolor": "#a3acb6", "axes.facecolor": CARD, "figure.facecolor": CARD, "grid.color": "#333a42"}
MAX_FRAMES, MAX_WIDTH = 120, 240  # of an animation; width in pixels


def save_figure(draw: Callable[[], Figure], path: Path, loggers: Sequence[Logger], key: str, update: int) -> None:
    """Writes a figure as PNG, on a light and on a dark background, and logs the light one; see `log_picture`."""
    import matplotlib as mpl

    lines = {"axes.prop_cycle": mpl.rcsetup.cycler("color", DARK_LINES)}
    for target, colors in ((path, {}), (dark_twin(path), DARK | lines)):
        drawn = io.BytesIO()
        with mpl.rc_context({"font.size": FONT_SIZE, **colors}):
            draw().savefig(drawn, format="png", dpi=DOTS_PER_INCH)
        with write_whole(target) as file:
            file.write(drawn.getvalue())
    log_picture(loggers, key, path, update)


def log_picture(loggers: Sequence[Logger], key: str, path: Path, update: int) -> None:
    """Logs a PNG to every logger that can show it; the counterpart of `log_video`, by the method ``log_image``."""
    _log("image", _add_picture, loggers, key, path, update)


def log_video(loggers: Sequence[Logger], key: str, path: Path, update: int) -> None:
    """Logs an MP4 to every logger that can show it: those with W&B's ``log_video``, TensorBoard (as GIF), MLflow."""
    _log("video", _add_animation, loggers, key, path, update)


def _log(
    kind: Literal["image", "video"],
    add: Callable[[Any, str, Path, int], None],
    loggers: Sequence[Logger],
    key: str,
    path: Path,
    update: int,
) -> None:
    """Logs a file; ``add`` adds it to TensorBoard's writer."""
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
    """Adds a GIF as a picture. TensorBoard shows no videos, and its ``add_video`` needs an outdated moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    encoded, (width, height) = animation(path)
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
    add_summary(writer, Summary(value=[Summary.Value(tag=key, image=image)]), update)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Reads a PNG as (height, width, 3) pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def animation(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Converts a video to a GIF of equal duration, with at most `MAX_FRAMES` frames; returns it, width and height."""
    from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe

    frames, seconds = count_frames_and_secs(str(path))
    filters = f"fps={min(frames, MAX_FRAMES) / seconds},scale='min({MAX_WIDTH},iw)':-2,split[a][b]"
    filters += ";[a]palettegen[colors];[b][colors]paletteuse"
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-filter_complex", filters, "-f", "gif", "-"]
    made = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return made, struct.unpack("<HH", made[6:10])
