"""Builds the measured tables of the documents from the figures in results/.

``python -m benchmarks.tables`` writes every table anew; ``--take`` goes the other way, for a table that was written by
hand. A table belongs to results/ if the line before it is ``<!-- results/NAME.json: TABLE -->``. NAME.json holds tables
by name: columns, alignment and rows, or the summary that ``tql report RUNS --format json`` wrote.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tql_lightning.report.table_formats import render_table

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"^<!-- (results/[\w.-]+\.json): ([\w .-]+) -->\n((?:\|.*\n)+)", flags=re.MULTILINE)


def documents(root: Path = ROOT) -> Iterator[Path]:
    """Documents that may show tables."""
    yield from (root / "README.md", root / "benchmarks" / "RESULTS.md", *sorted((root / "docs").glob("*.md")))


def render(table: dict[str, Any]) -> str:
    """A stored table, or a stored summary, as the lines of a Markdown table."""
    if "protocol" in table:
        return render_table(table, "md").partition("\n\n")[0] + "\n"
    head, *rows = [f"| {' | '.join(row)} |\n" for row in (table["columns"], *table["rows"])]
    return "".join([head, f"|{'|'.join(table['alignment'])}|\n", *rows])


def parse(text: str) -> dict[str, Any]:
    """The lines of a Markdown table as a stored table."""
    columns, alignment, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()
    ]
    return {"columns": columns, "alignment": [re.sub("-+", "---", each) for each in alignment], "rows": rows}


def rebuilt(text: str, root: Path = ROOT) -> str:
    """A document's text with its tables built anew."""

    def build(match: re.Match[str]) -> str:
        stored = json.loads((root / match[1]).read_text())
        return f"<!-- {match[1]}: {match[2]} -->\n{render(stored[match[2]])}"

    return TABLE.sub(build, text)


def take(root: Path = ROOT) -> None:
    """Stores the documents' tables, except those of summaries."""
    found: dict[str, dict[str, Any]] = {}
    for document in documents(root):
        for file, name, text in TABLE.findall(document.read_text()):
            path = root / file
            tables = found.setdefault(file, json.loads(path.read_text()) if path.is_file() else {})
            if "protocol" not in tables.get(name, {}):
                tables[name] = parse(text)
    for file, tables in found.items():
        (root / file).write_text(_dumped(tables))


def _dumped(tables: dict[str, Any]) -> str:
    """JSON with a line for each row of a table."""
    text = json.dumps(tables, indent=1, ensure_ascii=False)
    innermost = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")
    return innermost.sub(lambda match: "[" + re.sub(r"\n\s+", " ", match[1]) + "]", text) + "\n"


def main() -> None:
    """Writes the tables of all documents, or of results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", action="store_true", help="store the documents' tables instead")
    if parser.parse_args().take:
        take()
    for document in documents():
        text = document.read_text()
        if rebuilt(text) != text:
            document.write_text(rebuilt(text))
            print(f"wrote {document.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
