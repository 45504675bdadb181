"""Writes folders of runs without training."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

from tql_lightning.run.folder import (
    ATTENTION_MAP,
    CONFIG_FILE,
    METRICS_FILE,
    Q_LANDSCAPE,
    evaluation_file,
    picture_file,
)
from tql_lightning.run.provenance import record_start

UPDATES = (0, 100, 200)
# How every format and the page's script write numbers.
NUMBERS: dict[float | None, str] = {
    -1464.67: "−1,465", 999.7: "1,000", 123.456: "123.5", 0.0733: "0.0733", 0.0: "0", None: "–",
    -1.2345e-5: "−1.23e−5", 2e-7: "2e−7", 3e9: "3e+9", 1.5e20: "1.5e+20",
}  # fmt: skip


def png(grey: int, size: int = 4) -> bytes:
    """A square grey PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([grey]) * size) * size
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_run(
    folder: Path,
    seed: int = 0,
    final: float = 0.5,
    discount: float = 0.99,
    env_id: str = "Pendulum-v1",
    pictures: bool = False,
) -> Path:
    """Writes a run with three evaluations whose success rate ends at ``final``."""
    folder.mkdir(parents=True)
    columns = "step,eval/success_rate,eval/return,train/attention_entropy/layer_0/value,"
    columns += "train/attention_entropy_share/layer_0/value,"
    lines = [columns + "train/target_entropy/layer_0/value,train/td_loss"]
    for part, update in enumerate(UPDATES):
        entropies = f"{1.0 - 0.3 * part},{0.5 - 0.15 * part},1.2"
        lines.append(f"{update},{final * part / 2},{-100 + 10 * part + seed},{entropies},{1 / (1 + part)}")
        file = evaluation_file(folder, update)
        file.parent.mkdir(exist_ok=True)
        evaluation = {"update": update, "env_id": env_id, "seed": 0, "episodes": 2, "returns": [0.0, 1.0]}
        file.write_text(json.dumps(evaluation | {"lengths": [1, 1], "successes": None, "summary": {}}))
        for kind in (ATTENTION_MAP, Q_LANDSCAPE) if pictures else ():
            picture = picture_file(folder, kind, update)
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(png(50 + 80 * part))
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")
    (folder / CONFIG_FILE).write_text(
        f"seed_everything: {seed}\ntrainer:\n  default_root_dir: {folder}\n  max_steps: 200\n"
        f"  callbacks: [{{class_path: a.Callback, init_args: {{every: {seed + 1}}}}}]\n"
        f"model:\n  discount: {discount}\n"
        f"data:\n  seed: {seed}\n  dataset:\n    class_path: x.load\n    init_args: {{path: '{env_id}.npz'}}\n"
    )
    record_start(folder, ["fit", "--config", "my config.yaml", f"--seed_everything={seed}"], 0, "cpu", 1)
    return folder
