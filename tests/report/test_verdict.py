"""What the page says first: a verdict, baselines, and why entropies are not at their targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.runs import make_run, png
from tql_lightning.report.entropy import entropy_note
from tql_lightning.report.media import collect_media
from tql_lightning.report.page import render
from tql_lightning.report.runs import read_runs
from tql_lightning.run.baselines import CLONING, DATASET, read_baselines, record_baseline
from tql_lightning.run.folder import ATTENTION_MAP, BASELINES_FILE, METRICS_FILE, dark_twin, picture_file


def page(folder: Path) -> str:
    runs = read_runs([folder])
    return render(runs, collect_media(runs, 10**7))


def by_return(run: Path) -> Path:
    """A run whose environment reports no success."""
    metrics = run / METRICS_FILE
    metrics.write_text(metrics.read_text().replace("eval/success_rate", "eval/other"))
    return run


def test_one_method_is_judged_against_its_dataset_and_cloning(tmp_path: Path) -> None:
    for seed in (0, 1):
        run = by_return(make_run(tmp_path / "tql" / f"seed_{seed}", seed))
        record_baseline(run, DATASET, {"return": -300.0 - seed})
        record_baseline(run, CLONING, {"return": -250.0, "success_rate": 0.1})
    text = page(tmp_path)
    assert "tql reaches a return of −79.5 (95 % interval −80 to −79) on Pendulum-v1 with 2 runs, above" in text
    assert "above −300.5 of its dataset and −250 of behaviour cloning." in text
    assert text.count('<tr class="baseline">') == 2
    assert "not known" not in text
    assert '"name": "dataset"' in text.replace("&#34;", '"')


def test_a_success_rate_is_compared_with_that_of_cloning_and_the_page_says_what_is_not_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "tql" / "seed_0", final=0.9)
    record_baseline(run, DATASET, {"return": -300.0})
    text = " ".join(page(tmp_path).split())
    assert "The dataset&#39;s success rate is not known: its episodes" in text
    assert "Nothing is known of behaviour cloning: tql evaluate RUN/checkpoints/last.ckpt --extraction" in text
    record_baseline(run, CLONING, {"success_rate": 0.1})
    text = page(tmp_path)
    assert ", above 10 % of behaviour cloning." in text
    assert text.count('<tr class="baseline">') == 1
    assert '<span class="dot c7" style="left:10.0%"></span>' in text
    assert "Nothing is known" not in text


def test_methods_with_one_run_each_are_not_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "seed_0", final=0.9)
    make_run(tmp_path / "b" / "seed_0", final=0.5, discount=0.9)
    text = page(tmp_path)
    assert "one run each does not tell which method is better" in text
    assert "Probability of improvement" not in text


def test_a_single_run_is_compared_with_several_no_more_than_with_one(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "a" / f"seed_{seed}", seed, final=0.9)
    make_run(tmp_path / "b" / "seed_0", final=0.5, discount=0.9)
    text = page(tmp_path)
    assert "b/seed_0 (50 %); a single run of one of them does not tell which method is better" in text
    assert "Probability of improvement" not in text


def test_baselines_that_no_method_reaches_are_in_the_verdict(tmp_path: Path) -> None:
    for name, discount in (("a", 0.99), ("b", 0.9)):
        run = make_run(tmp_path / name / "seed_0", final=0.5, discount=discount)
        record_baseline(run, CLONING, {"success_rate": 0.6})
        record_baseline(run, DATASET, {"success_rate": 0.1})
    assert "which method is better; behaviour cloning has 60 %." in page(tmp_path)


def test_methods_with_several_runs_are(tmp_path: Path) -> None:
    for seed in range(3):
        make_run(tmp_path / "a" / f"seed_{seed}", seed, final=0.9 + seed / 100)
        make_run(tmp_path / "b" / f"seed_{seed}", seed, final=0.5 + seed / 100, discount=0.9)
    text = page(tmp_path)
    assert "; each of its runs beats every run of b (51 %)." in text
    assert "Probability of improvement" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"dataset": "x", "behaviour cloning": {"return": null}}'])
def test_damaged_baselines_are_left_out(content: str, tmp_path: Path) -> None:
    (tmp_path / BASELINES_FILE).write_text(content)
    assert read_baselines(tmp_path) == {}


def test_entropies_off_their_targets_are_explained_by_temperatures_that_still_move(tmp_path: Path) -> None:
    key = "layer_1/value"
    head = f"step,train/attention_entropy_distance/{key},train/temperature/{key}\n"
    rows = "".join(f"{10 * step},{-0.04 * step},{1 + step}\n" for step in range(1, 11))
    run = make_run(tmp_path / "seed_0")
    (run / METRICS_FILE).write_text(head + rows)
    note = entropy_note(read_runs([run]))
    assert note is not None
    assert "layer 1, [VALUE] −0.40." in note
    assert "still moving" in note
    (run / METRICS_FILE).write_text(head + "10,0.01,3\n20,0.02,3\n")
    assert entropy_note(read_runs([run])) == "Every entropy ends within 0.1 nats of its target."


def test_the_dark_scheme_shows_the_picture_drawn_for_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "seed_0", pictures=True)
    dark_twin(picture_file(run, ATTENTION_MAP, 200)).write_bytes(png(1))
    text = page(run)
    assert text.count('<source media="(prefers-color-scheme: dark)"') == 1
