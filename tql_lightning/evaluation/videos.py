"""Films evaluation episodes, with or without a display."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from tql_lightning.evaluation.envs import EnvError, make_env
from tql_lightning.evaluation.rollout import rollout
from tql_lightning.nn.policy import Actor
from tql_lightning.system.files import require_writable
from tql_lightning.trust.text import FileError

RENDERERS = ("egl", "osmesa")
FRAMES_PER_SECOND = 20  # if the environment gives no rate
REMEDY = (  # in lines, since the command line cuts long ones
    "Without a display MuJoCo needs EGL or OSMesa (Debian: apt-get install libegl1, or libosmesa6);\n"
    "set MUJOCO_GL=egl or MUJOCO_GL=osmesa to choose one.\n"
    "Gymnasium's classic environments need pygame (pip install tql-lightning[video])."
)


class VideoError(FileError):
    """Episodes cannot be filmed; the message says what to install."""


def require_video() -> None:
    """Checks that videos can be written, and chooses a renderer that works without a display.

    Call it before anything imports MuJoCo, since it sets ``MUJOCO_GL`` unless it is set.

    Raises:
        VideoError: a package is not installed.
    """
    missing = missing_packages()
    if missing:
        raise VideoError(f"videos need {' and '.join(missing)}: pip install tql-lightning[video]")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame's
    if "MUJOCO_GL" not in os.environ and importlib.util.find_spec("mujoco") is not None:
        working = next((name for name in RENDERERS if _renders(name)), None)
        if working is not None:
            os.environ["MUJOCO_GL"] = working


def _renders(renderer: str) -> bool:
    """Whether MuJoCo works with a renderer; tried in a new process, since MuJoCo reads the choice at import."""
    code = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); print('works')"
    tried = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MUJOCO_GL": renderer},
        capture_output=True,
        text=True,
        check=False,
    )
    return "works" in tried.stdout


def missing_packages() -> list[str]:
    """Packages that writing videos needs and that are not installed."""
    return [name for name in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(name) is None]


def film_episodes(
    actor: Actor,
    env_id: str,
    episodes: int,
    seed: int,
    folder: Path,
    name: str,
    before_step: Callable[[], None] | None = None,
    max_episode_steps: int | None = None,
) -> list[Path]:
    """Films the first episodes of an evaluation, as `rollout` plays them for the same seed.

    Args:
        actor: Policy.
        env_id: Gymnasium id of the environment.
        episodes: Number of episodes.
        seed: Seed of the evaluation.
        folder: Folder of the files ``<name>_episode_<i>.mp4``.
        name: Start of the file names.
        before_step: Function called before every step.
        max_episode_steps: See `make_env`.

    Returns:
        Paths of the videos. A video is complete or absent.

    Raises:
        EnvError: the environment cannot be made or rendered, fails, or returns NaN or infinity.
        ValueError: the folder cannot be written to.
    """
    paths = [folder / f"{name}_episode_{episode}.mp4" for episode in range(episodes)]
    require_writable(paths[0])
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(_Filmed, env_id, paths, max_episode_steps)
    rollout(actor, env_id, episodes, seed, num_envs=1, before_step=before_step, make=make)
    return paths


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment that films one episode per path, and none after that."""

    def __init__(self, env_id: str, paths: Sequence[Path], max_episode_steps: int | None = None) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*render_mode")  # OGBench renders without declaring it
            super().__init__(make_env(env_id, "rgb_array", max_episode_steps))
        self._env_id = env_id
        self._waiting = list(paths)
        self._writer: Any = None
        self._path = self._part = Path()

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Resets and starts the next file."""
        start = self.env.reset(**arguments)
        self._finish()
        if self._waiting:
            self._start(self._waiting.pop(0))
            self._add_frame()
        return start

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps and adds a frame; the last step closes the file."""
        outcome = self.env.step(action)
        if self._writer is not None:
            self._add_frame()
            if outcome[2] or outcome[3]:
                self._finish()
        return outcome

    def close(self) -> None:
        """Closes the environment and removes an unfinished file."""
        if self._writer is not None:
            self._writer.close()
            self._part.unlink(missing_ok=True)
            self._writer = None
        self.env.close()

    def _start(self, path: Path) -> None:
        import imageio.v2

        self._path, self._part = path, path.with_name(f".{path.stem}.part.mp4")
        rate = self.env.metadata.get("render_fps", FRAMES_PER_SECOND)
        self._writer = imageio.v2.get_writer(self._part, format="FFMPEG", fps=rate, macro_block_size=2)

    def _add_frame(self) -> None:
        try:
            frame = self.env.render()
        except Exception as error:  # of any renderer
            raise EnvError(f"environment {self._env_id} cannot be rendered: {error}\n{REMEDY}") from error
        self._writer.append_data(frame)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._part.replace(self._path)
            self._writer = None
