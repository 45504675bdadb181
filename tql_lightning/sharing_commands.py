"""The commands whose output others read or run: what they print; what they do lies in the modules they call."""

from __future__ import annotations

from pathlib import Path

from tql_lightning.export.policy_folder import ExportFormat
from tql_lightning.nn.extraction import Extraction


def export(
    checkpoint: str,
    format: ExportFormat = "onnx",  # noqa: A002  (the option's name)
    output: str = "exported",
    extraction: Extraction | None = None,
) -> None:
    """Writes a checkpoint's policy for use without Lightning, compared with the checkpoint; see docs/export.md.

    Args:
        checkpoint: a .ckpt file.
        output: folder to make; may not exist, or must be empty.
        format: "onnx" (for any ONNX runtime) or "torch" (weights for `tql_lightning.Policy`).
        extraction: "fql", "implicit" or "behaviour_flow"; default: the model's own.
    """
    from tql_lightning.export.comparison import BATCH_SIZES, TOLERANCE
    from tql_lightning.export.writer import export_checkpoint

    exported = export_checkpoint(Path(checkpoint), Path(output), format, extraction)
    checked = exported.metadata["verification"]
    sizes = " and ".join(str(size) for size in BATCH_SIZES)
    print(f"wrote {exported.folder}: {', '.join(sorted(path.name for path in exported.folder.iterdir()))}")
    print(
        f"actions equal the checkpoint's to {exported.largest_difference:.1e} (at most {TOLERANCE:g} allowed) on "
        f"{checked['rows']:,} observations ({checked['observations']}), in batches of {sizes}"
    )
    print(f'use: from tql_lightning import Policy; Policy.load("{exported.folder}").act(observation)')


def report(runs: list[str], output: str = "report.html", media_mb: float = 30.0) -> None:
    """Writes one self-contained page about runs: scores, curves, pictures, configurations, commands; docs/report.md.

    Args:
        runs: folders of runs, or folders that hold runs; those of one configuration are seeds of one method.
        output: HTML file to write.
        media_mb: megabytes that pictures and videos may take in it.
    """
    from tql_lightning.report.page import write_report

    written = write_report([Path(run) for run in runs], Path(output), media_mb)
    print(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")
