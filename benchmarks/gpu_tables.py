"""What `benchmarks/gpu.sh` has measured, as the tables of RESULTS.md.

python -m benchmarks.gpu_tables FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Fields = dict[str, Any]


def read(folder: Path) -> dict[str, Fields]:
    """The last line of each step, by its name."""
    lines = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines}


def table(header: str, rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """A table of Markdown; nothing where there are no rows."""
    found = [f"| {' | '.join(map(str, row))} |" for row in rows]
    if found:
        columns = header.count("|") + 1
        yield from ("", f"| {header} |", "|" + "---|" * columns, *found)


def tables(steps: dict[str, Fields]) -> Iterator[str]:
    """Lines of Markdown: the machine, what failed, and every figure."""
    failed = [f"{name} (exit code {step['code']})" for name, step in steps.items() if step["code"]]
    results = {name: step["result"] for name, step in steps.items() if step["result"] and not step["code"]}
    yield from sorted({f"Machine: {result['machine']}." for result in results.values() if "machine" in result})
    yield f"Failed: {', '.join(failed) or 'nothing'}."
    updates = {name.removeprefix("update "): r for name, r in results.items() if name.startswith("update ")}
    header = "update | ours, ms (spread) | plain, ms | ratio (spread) | updates/s | TFLOP/s | share of peak"
    yield from table(header, (update_row(name, fields) for name, fields in updates.items()))
    yield from table("goal | found", goals(list(updates.values())))
    yield from table(
        "where the time goes | share",
        (
            (f"{name}: `{kernel[:80]}`", f"{share:.1%}")
            for name, fields in updates.items()
            for kernel, share in list(fields.get("shares_of_time", {}).items())[:8]
        ),
    )
    for name, fields in results.items():
        if not name.startswith("update "):
            yield from table(f"{name} | ", ((key, short(value)) for key, value in fields.items() if key != "machine"))


def update_row(name: str, fields: Fields) -> tuple[str, ...]:
    """Columns of one configuration of an update."""
    return (
        name,
        f"{1e3 * fields['ours_s']:.3f} ({1e3 * fields['ours_spread_s']:.3f})",
        f"{1e3 * fields['plain_s']:.3f}",
        f"{fields['ratio']:.3f} ({fields['ratio_spread']:.3f})",
        f"{fields['ours_updates_per_s']:,.0f}",
        f"{fields['ours_flop_per_s'] / 1e12:.1f}",
        f"{fields['ours_share_of_peak']:.2f}",
    )


def goals(updates: list[Fields]) -> Iterator[tuple[str, str]]:
    """What was to be reached, and the best that was."""

    def of(hidden_dim: int, precision: str) -> list[Fields]:
        return [x for x in updates if (x["hidden_dim"], x["precision"]) == (hidden_dim, precision)]

    if large := of(1024, "bfloat16"):
        yield "at 1024 half of bfloat16's peak", f"{max(x['ours_share_of_peak'] for x in large):.2f}"
    if small := [x for x in updates if x["hidden_dim"] == 128]:
        yield "at 128 2,000 updates a second", f"{max(x['ours_updates_per_s'] for x in small):,.0f}"
    for size in sorted({x["hidden_dim"] for x in updates}):
        narrow, wide = (min((x["ours_s"] for x in of(size, p)), default=None) for p in ("bfloat16", "tf32"))
        if narrow and wide:
            yield f"at {size} bfloat16 no slower than TF32", f"{narrow / wide:.2f} of its time"


def short(value: object) -> object:
    """A number in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else value


if __name__ == "__main__":
    print("\n".join(tables(read(Path(sys.argv[1])))))
