"""Runs in folders of strange names are trained, continued and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.refusing import assert_harmless
from tql_lightning.run.metrics_csv import read_metrics

pytestmark = pytest.mark.slow

NAMES = (
    "a b",
    "it's",
    'a "b"',
    "ümläut",
    "模型",
    "100%",
    "$HOME",
    "[x]*?",
    "{x}",
    "a=b",
    "a,b",
    "#a",
    "a;b&c",
    "x" * 200,
)
FIT = ("fit", "--config=tiny.yaml", "--data.dataset=tests.toy.toy_dataset")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_a_strange_folder_is_trained_continued_and_reported(name: str, folder: Path) -> None:
    own = (*FIT, f"--trainer.default_root_dir={name}")
    assert_harmless(folder, (*own, "--trainer.max_steps=10"), code=0, within=(name,))
    assert_harmless(folder, (*own, "--ckpt_path=last"), code=0, within=(name,))
    assert_harmless(folder, ("report", name), code=0, within=("report.html",))
    updates = read_metrics(folder / name / "metrics.csv")["train/td_loss"][0]
    assert (updates[-1], len(set(updates))) == (20, len(updates))
    assert {path.name for path in folder.iterdir()} >= {name, "report.html"}
