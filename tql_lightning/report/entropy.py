"""A sentence about where attention entropy ended, and why not at its targets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tql_lightning.report.runs import Run

NEAR = 0.1  # nats from its target
MOVING = 0.05  # share by which a temperature still changed in the last fifth of a run
DISTANCE = re.compile(r"train/attention_entropy_distance/(layer_(\d+)/(\w+))")


def entropy_note(runs: Sequence[Run]) -> str | None:
    """Distances of the entropies from their targets at the end of the runs; None for runs without targets."""
    distances: dict[str, list[float]] = {}
    moving: dict[str, bool] = {}
    for run in runs:
        for key, (_, values) in run.series.items():
            if match := DISTANCE.fullmatch(key):
                name = f"layer {match[2]}, {'[VALUE]' if match[3] == 'value' else match[3]}"
                distances.setdefault(name, []).append(values[-1])
                moving[name] = moving.get(name, False) or _moves(run, f"train/temperature/{match[1]}")
    if not distances:
        return None
    means = {name: sum(values) / len(values) for name, values in distances.items()}
    far = {name: mean for name, mean in means.items() if abs(mean) > NEAR}
    if not far:
        return f"Every entropy ends within {NEAR} nats of its target."
    listed = ", ".join(f"{name} {mean:+.2f}" for name, mean in sorted(far.items())).replace("-", "−")
    text = f"Entropy less its target at the end, mean over runs, where it is more than {NEAR} nats: {listed}."
    if any(moving[name] for name in far):
        text += (
            " Their temperatures were still moving in the last fifth of training: the runs end before the entropies "
            "reach their targets. More updates, or a higher learning rate of the temperatures, bring them nearer."
        )
    return text


def _moves(run: Run, key: str) -> bool:
    values = run.series.get(key, ([], []))[1]
    before = values[-max(1, len(values) // 5) - 1 :][:1]
    return bool(before) and abs(values[-1] - before[0]) > MOVING * abs(values[-1])
