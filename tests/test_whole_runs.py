"""Whole runs on the release's inputs: what does not depend on chaos is equal, the rest lies where its own arms lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from benchmarks import whole_runs
from benchmarks.whole_runs import INDEPENDENT, UPDATES, Curves
from tql_lightning.data.collecting.collect import collect
from tql_lightning.data.sources.npz import load_npz
from tql_lightning.data.transitions import TransitionDataset

WINDOW = 125  # updates of a mean
EQUAL = 5e-6  # absolute difference of the behaviour-flow loss


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Path:
    folder: Path | None = request.config.getoption("--golden-long")
    if folder is None:
        pytest.skip("needs the release's whole runs: --golden-long DIR with inputs_S.npz and curves.npz")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TransitionDataset:
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    collect("Pendulum-v1", output=str(path))
    return load_npz(str(path))


@pytest.fixture(scope="module")
def runs(recorded: Path, dataset: TransitionDataset) -> Mapping[int, Curves]:
    seeds = [seed for seed in whole_runs.recorded_seeds(recorded) if seed in (0, 1)]
    assert seeds, f"{recorded}: expected inputs_0.npz or inputs_1.npz"
    return {seed: whole_runs.replay(recorded / f"inputs_{seed}.npz", dataset) for seed in seeds}


@pytest.mark.slow
def test_the_behaviour_flow_loss_is_the_releases_throughout(recorded: Path, runs: Mapping[int, Curves]) -> None:
    release = whole_runs.release_curves(recorded)
    for seed, ours in runs.items():
        assert len(ours[INDEPENDENT]) == UPDATES
        difference = float(np.abs(ours[INDEPENDENT] - release[seed][0][INDEPENDENT]).max())
        assert difference <= EQUAL, f"seed {seed}: differs by {difference:.3g}"


@pytest.mark.slow
def test_every_other_curve_lies_within_the_spread_of_the_arms(recorded: Path, runs: Mapping[int, Curves]) -> None:
    release = whole_runs.release_curves(recorded)
    names = sorted(next(iter(runs.values())).keys() - {INDEPENDENT})
    assert len(names) > 20
    outside = {}
    for name in names:
        allowed = whole_runs.arms_excess(release, name, WINDOW)
        for seed, ours in runs.items():
            farthest = float(whole_runs.excess(ours, seed, release, name, WINDOW).max())
            if farthest > allowed:
                outside[seed, name] = (farthest, allowed)
    assert not outside, f"farther from the arms of the seed than any arm is from the others: {outside}"


def test_a_curve_is_outside_by_units_of_the_widest_band() -> None:
    line = np.zeros(UPDATES)
    release = {0: [{"x": line}, {"x": line + 1.0}], 1: [{"x": line}, {"x": line + 4.0}]}
    assert whole_runs.excess({"x": line + 0.5}, 0, release, "x", WINDOW).max() == 0.0
    np.testing.assert_allclose(whole_runs.excess({"x": line - 2.0}, 0, release, "x", WINDOW), 0.5)
    np.testing.assert_allclose(whole_runs.excess({"x": line + 9.0}, 0, release, "x", WINDOW), 2.0)


def test_an_arm_is_measured_beside_the_others() -> None:
    line = np.zeros(UPDATES)
    release = {0: [{"x": line}, {"x": line + 1.0}, {"x": line + 7.0}]}
    assert whole_runs.arms_excess(release, "x", WINDOW) == pytest.approx(6.0)


def test_the_permutation_test_knows_a_run_that_is_one_more_arm_from_one_that_is_not() -> None:
    arms = {0: [0.0, 1.0, 2.0], 1: [10.0, 11.0, 12.0]}
    assert whole_runs.permutation_p({0: 1.0, 1: 11.0}, arms) == 1.0
    assert whole_runs.permutation_p({0: 50.0, 1: 60.0}, arms) == pytest.approx(1 / 16)
    assert whole_runs.permutation_p({0: -50.0, 1: -40.0}, arms) == pytest.approx(1 / 16)
