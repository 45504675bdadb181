"""The file ``metrics.csv``: whole rows only, also after a kill or with a full disk."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from tql_lightning.system.files import remove_leftovers, write_text_whole


class MetricsFile(ExperimentWriter):
    """Lightning's writer of CSV files, which goes on with a file that is there."""

    def save(self) -> None:
        """Lightning's; where it cannot be written whole, file and columns are as they were."""
        file, columns = Path(self.metrics_file_path), list(self.metrics_keys)
        size = file.stat().st_size if file.is_file() else None
        try:
            super().save()
        except OSError:
            self.metrics_keys = columns
            if size is None:
                file.unlink(missing_ok=True)
            elif file.stat().st_size > size:
                os.truncate(file, size)
            raise

    def keep_until(self, update: int) -> dict[int, set[str]]:
        """Removes rows of later updates; returns the names of what the others hold, by update."""
        kept: dict[int, set[str]] = {}
        if Path(self.metrics_file_path).is_file():
            rows = [row for row in self._rows() if int(float(row["step"])) <= update]
            self._write_whole(self.metrics_keys, rows)
            for row in rows:
                kept.setdefault(int(float(row["step"])), set()).update(name for name, value in row.items() if value)
        return kept

    def _check_log_dir_exists(self) -> None:
        """Takes over the columns that are there, where Lightning's removes the file; mends what a kill cut short."""
        file = Path(self.metrics_file_path)
        remove_leftovers(file.parent, file.name)
        if not file.is_file():
            return
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            write_text_whole(file, content[: content.rfind(b"\n") + 1].decode())
        with file.open(newline="") as lines:
            self.metrics_keys = next(csv.reader(lines), [])
        if not self.metrics_keys:
            file.unlink()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning's, but the file is whole at any time, where Lightning's is empty for a moment."""
        self._write_whole(fieldnames, self._rows())

    def _rows(self) -> list[dict[str, str]]:
        with Path(self.metrics_file_path).open(newline="") as lines:
            return list(csv.DictReader(lines))

    def _write_whole(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text_whole(Path(self.metrics_file_path), text.getvalue())
