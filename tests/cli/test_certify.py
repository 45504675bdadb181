"""`tql certify` and `tql evaluate --extraction smoothed`: from a run, a checkpoint or an exported policy to a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.command_line import call_tql
from tests.toy import fit, toy_dataset, toy_model
from tql_lightning.algorithms.loading import load_checkpoint
from tql_lightning.data.sources.npz import save_npz
from tql_lightning.data.sources.schema import fields_of
from tql_lightning.evaluation.smoothed_actor import zero_noise
from tql_lightning.evaluation.smoothing import Smoothing, certify
from tql_lightning.export.writer import export_checkpoint

FAST = ("--data", "toy.npz", "--states", "2", "--candidates", "30", "--certificate_samples", "1500")
SETTINGS = ("--sigma", "0.1", "0.3", "--epsilon", "0.1", "0.3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With run/checkpoints/last.ckpt, an exported policy in policy/, and their dataset, toy.npz."""
    folder = tmp_path_factory.mktemp("certify")
    dataset = toy_dataset(env_id="Pendulum-v1")
    arrays, settings = fields_of(dataset)
    save_npz(folder / "toy.npz", **arrays, **settings)
    checkpoint = folder / "run" / "checkpoints" / "last.ckpt"
    fit(folder, toy_model(), updates=5, env_id="Pendulum-v1").save_checkpoint(checkpoint)
    export_checkpoint(checkpoint, folder / "policy")
    return folder


def certified(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What is printed, and what the file holds."""
    finished = call_tql(folder, "certify", *arguments, "--json", "figures.json")
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, json.loads((folder / "figures.json").read_text())


@pytest.mark.slow
def test_a_run_is_certified_at_states_of_the_dataset(folder: Path) -> None:
    printed, figures = certified(folder, "run", *FAST, *SETTINGS, "--seed", "3")
    model, _ = load_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    rows = np.random.default_rng(3).integers(160, size=2)
    states = torch.from_numpy(np.load(folder / "toy.npz")["observations"][rows])
    expected = []
    for number, state in enumerate(states):
        drawn = torch.Generator().manual_seed(int(np.random.SeedSequence((3, number)).generate_state(1)[0]))
        with torch.inference_mode():
            certificate = certify(
                zero_noise(model.actor()),
                state,
                Smoothing(0.3, certificate_samples=1500, candidates=30),
                (0.1, 0.3),
                lambda count, drawn=drawn: torch.randn(count, 3, generator=drawn),  # type: ignore[misc]
            )
        expected.append(certificate)
    wide = figures["rows"][2:]
    assert [row["sigma"] for row in figures["rows"]] == [0.1, 0.1, 0.3, 0.3]
    for place, row in enumerate(wide):
        assert row["bounds"] == pytest.approx([each.bounds[place] for each in expected])
        assert row["smoothing_errors"] == pytest.approx([each.smoothing_error for each in expected])
        assert row["bound_median"] == pytest.approx(np.median(row["bounds"]))
        assert f"{row['bound_median']:.3f}" in printed
    refused = figures["rows"][1]
    assert (refused["epsilon"], refused["bounds"]) == (0.3, [])
    assert refused["samples_needed"] == Smoothing(0.1).certificate_samples_needed(0.3)
    assert f"not certified: needs {refused['samples_needed']:,} of certificate samples" in printed
    for limit in ("probability 99 %", "for all 2 at once with at least 98 %", "not scaled", "Not certified", "returns"):
        assert limit in printed


def test_values_are_certified_at_the_policys_action(folder: Path) -> None:
    printed, figures = certified(folder, "run/checkpoints/last.ckpt", *FAST, *SETTINGS, "--output", "q")
    assert "Q of the action of run/checkpoints/last.ckpt after 5 updates" in printed
    model, _ = load_checkpoint(folder / "run" / "checkpoints" / "last.ckpt")
    rows = np.random.default_rng(0).integers(160, size=2)
    states = torch.from_numpy(np.load(folder / "toy.npz")["observations"][rows])
    with torch.inference_mode():
        values = model.critic(states, zero_noise(model.actor())(states)).values
    spread = float((values - values.mean(0)).square().sum(1).mean().sqrt())
    assert figures["output_spread"] == pytest.approx(spread, rel=1e-4)
    assert len(figures["rows"][0]["bounds"]) == 2


def test_an_exported_policy_is_certified_as_its_checkpoint_in_the_environments_units(folder: Path) -> None:
    """Pendulum's actions go from -2 to 2."""
    _, checkpoint = certified(folder, "run", *FAST, *SETTINGS)
    printed, exported = certified(folder, "policy", *FAST, *SETTINGS)
    assert "in the environment's units" in printed
    for ours, theirs in zip(exported["rows"], checkpoint["rows"], strict=True):
        assert ours["bounds"] == pytest.approx([2.0 * bound for bound in theirs["bounds"]], rel=1e-3)


def test_states_that_abstain_are_counted_apart(folder: Path) -> None:
    """With the fewest samples that are taken, a centre is certified only where more than half are inside its ball."""
    few = ("--samples", "1199", "--sigma", "0.1", "--epsilon", "0.1")
    printed, figures = certified(folder, "run", *FAST, *few, "--states", "6")
    (row,) = figures["rows"]
    assert 0 < row["abstained"] < 6
    assert len(row["bounds"]) == len(row["smoothing_errors"]) == 6 - row["abstained"]
    assert printed.splitlines()[2].split()[-1] == str(row["abstained"])


def test_a_smoothed_policy_plays_and_says_how(folder: Path) -> None:
    arguments = ("evaluate", "run/checkpoints/last.ckpt", "--episodes", "1", "--extraction", "smoothed")
    finished = call_tql(folder, *arguments, "--sigma", "0.1", "--smoothing_samples", "20", "--json", "played.json")
    assert finished.returncode == 0, finished.stderr
    (played,) = json.loads((folder / "played.json").read_text())
    assert (played["extraction"], played["sigma"], played["smoothing_samples"]) == ("smoothed", 0.1, 20)
    assert played["lengths"] == [200.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", *FAST, "--sigma", "0"), "sigma: expected a finite number above 0, found 0.0"),
        (("run", *FAST, "--epsilon=-1"), "epsilon: expected a finite number of at least 0, found -1.0"),
        (("run", *FAST, "--states", "0"), "states: expected at least 1, found 0"),
        (("run", *FAST, "--samples", "1000"), "samples: expected at least 1,199 (in practice 4,000), found 1,000"),
        (("run", *FAST, "--sigma", "0.1", "--epsilon", "0.3"), "it takes at least 3,"),
        (("run", *FAST, "--sigma", "0.1", "--epsilon", "9"), "no number does; or choose a larger sigma"),
        (("policy", *FAST[2:]), "name it with --data"),
        (("policy", *FAST, "--output", "q"), "an exported policy has no values"),
        (("policy", *FAST, "--extraction", "fql"), "an exported policy has its own"),
        (("nothing.ckpt", *FAST), "nothing.ckpt: no such file"),
    ],
)
def test_what_cannot_be_certified_is_refused_with_the_remedy(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    finished = call_tql(folder, "certify", *arguments)
    assert finished.returncode != 0
    assert message in finished.stderr


def test_sigma_without_smoothing_is_refused(folder: Path) -> None:
    for arguments in (["--sigma", "0.1"], ["--extraction", "smoothed"]):
        finished = call_tql(folder, "evaluate", "run/checkpoints/last.ckpt", "--episodes", "1", *arguments)
        assert "sigma: expected with --extraction smoothed, and only with it" in finished.stderr
