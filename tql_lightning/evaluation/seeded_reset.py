"""Makes the reset of an environment a function of its seed, also where it draws from numpy's global generator."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from tql_lightning.data.collecting.behaviours import seeded_globally


class SeededReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Seeds numpy's global generator during a reset with a seed, as OGBench's mazes draw their starts from it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment; the global generator is in its former state afterwards."""
        if seed is None:
            return super().reset(options=options)
        with seeded_globally(np.random.default_rng(seed)):
            return super().reset(seed=seed, options=options)
