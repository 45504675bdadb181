"""The documents' measured tables are those that results/ holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.tables import ROOT, TABLE, documents, parse, rebuilt, render, take
from tql_lightning.report.table import Entry, summarise

LARGEST = 300_000  # bytes of a file in results/


@pytest.mark.parametrize("document", [*documents()], ids=lambda path: path.stem)
def test_a_documents_tables_are_built_from_results(document: Path) -> None:
    text = document.read_text()
    assert rebuilt(text) == text, "make tables writes them anew; python -m benchmarks.tables --take stores them"


def test_every_file_of_figures_is_small_and_every_stored_table_is_shown() -> None:
    shown = {(file, name) for path in documents() for file, name, _ in TABLE.findall(path.read_text())}
    assert len(shown) > 20
    for file in (ROOT / "results").glob("*.json"):
        assert file.stat().st_size < LARGEST
    stored = {(file, name) for file, _ in shown for name in json.loads((ROOT / file).read_text())}
    assert stored == shown


def test_a_changed_figure_changes_its_document_and_a_summary_is_shown_as_its_table(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("")
    (tmp_path / "benchmarks" / "RESULTS.md").write_text("")
    table = "| a | b |\n|---|---:|\n| 1 | 2.50 |\n"
    page = tmp_path / "docs" / "page.md"
    page.write_text(f"Text.\n\n<!-- results/x.json: own -->\n{table}\nMore.\n")
    take(tmp_path)
    file = tmp_path / "results" / "x.json"
    assert json.loads(file.read_text()) == {"own": parse(table)}
    assert render(parse(table)) == table
    assert rebuilt(page.read_text(), tmp_path) == page.read_text()

    entries = [Entry(f"seed_{seed}", "d", "d", "m", str(seed), [0.5, 0.5, 0.5], 30) for seed in (0, 1)]
    file.write_text(json.dumps({"own": summarise(entries, "success_rate", "last_three")}))
    assert "| d | 50 ± 0 [50, 50] |\n" in rebuilt(page.read_text(), tmp_path)
    before = file.read_text()
    page.write_text(rebuilt(page.read_text(), tmp_path))
    take(tmp_path)
    assert json.loads(file.read_text()) == json.loads(before), "a summary is not read back from its table"
