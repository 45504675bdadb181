"""Center smoothing, against the authors' numbers and against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from tql_lightning.evaluation.smoothing import Certificate, Draw, Smoothing, certify, median_center, smooth

GOLDEN = Path(__file__).parents[1] / "golden_seeds"
EPSILONS = (0.0, 0.1, 0.3)


def normal_draws(size: int, seed: int = 0) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda number: torch.randn(number, size, generator=generator, dtype=torch.float64)


def recorded_draws(noise: Tensor) -> Draw:
    """The next rows at every call."""
    left = noise

    def draw(number: int) -> Tensor:
        nonlocal left
        drawn, left = left[:number], left[number:]
        return drawn

    return draw


def identity(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("case", ["clipped", "candidates", "abstains"])
def test_certificates_are_the_authors(case: str) -> None:
    golden = np.load(GOLDEN / f"smoothing_{case}.npz")
    arrays = {name: torch.tensor(golden[name], dtype=torch.float64) for name in ("x", "noise", "W1", "b1", "W2", "b2")}
    settings = {name: golden[name].item() for name in ("sigma", "samples", "certificate_samples")}
    smoothing = Smoothing(**settings, candidates=int(golden["candidates"]) or None, interpolate=True)

    def function(x: Tensor) -> Tensor:
        output = torch.tanh(x @ arrays["W1"] + arrays["b1"]) @ arrays["W2"] + arrays["b2"]
        return output.clamp(-1.0, 1.0) if golden["clip_output"] else output

    draw = recorded_draws(arrays["noise"])
    certificate = certify(function, arrays["x"], smoothing, golden["eps_in"].tolist(), draw)
    smoothed = certificate.smoothed
    assert smoothed.center_index == golden["center_index"]
    assert smoothed.inside == golden["inside"]
    assert smoothed.abstains == golden["abstains"]
    np.testing.assert_allclose(smoothed.center, golden["center"], rtol=1e-6)
    assert smoothed.radius == pytest.approx(float(golden["radius"]), rel=1e-6)
    assert smoothing.delta_1 == pytest.approx(float(golden["delta_1"]), rel=1e-12)
    assert smoothed.delta_2 == pytest.approx(float(golden["delta_2"]), rel=1e-12)
    assert [smoothing.quantile(float(each)) for each in golden["eps_in"]] == pytest.approx(golden["quantile"], rel=1e-8)
    expected = [None if bound < 0.0 else bound for bound in golden["eps_out"]]
    assert [bound is None for bound in certificate.bounds] == [bound is None for bound in expected]
    found = [bound for bound in certificate.bounds if bound is not None]
    assert found == pytest.approx([bound for bound in expected if bound is not None], rel=1e-5)
    if smoothed.abstains:
        assert certificate.smoothing_error is None
    else:
        assert certificate.smoothing_error == pytest.approx(float(golden["smoothing_error"][0]), rel=1e-6)
        assert len(draw(1)) == 0  # every draw was used


def test_the_identity_has_the_quantiles_of_a_half_normal_distribution() -> None:
    """In the limit of many samples the bound is 3 sigma Phi^-1((1 + q) / 2)."""
    smoothing = Smoothing(sigma=0.5, certificate_samples=400_000)
    certificate = certify(identity, torch.tensor([0.7], dtype=torch.float64), smoothing, EPSILONS, normal_draws(1))
    expected = [3.0 * 0.5 * NormalDist().inv_cdf((1.0 + smoothing.quantile(epsilon)) / 2.0) for epsilon in EPSILONS]
    assert certificate.bounds == pytest.approx(expected, rel=0.02)
    assert float(certificate.smoothed.center) == pytest.approx(0.7, abs=0.03)
    assert certificate.smoothed.radius == pytest.approx(0.5 * NormalDist().inv_cdf(0.75), rel=0.03)


def test_a_linear_map_moves_by_less_than_its_bound() -> None:
    matrix = torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    x, smoothing = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64), Smoothing(sigma=0.2, samples=3_000)

    def at(moved: Tensor) -> Certificate:
        return certify(lambda inputs: inputs @ matrix, moved, smoothing, EPSILONS, normal_draws(3))

    here = at(x)
    assert (here.smoothed.center - x @ matrix).norm() < 0.1
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    direction = torch.linalg.svd(matrix).U[:, 0]  # that moves the output furthest
    for epsilon, bound in zip(EPSILONS, here.bounds, strict=True):
        moved = float((at(x + epsilon * direction).smoothed.center - here.smoothed.center).norm())
        assert moved == pytest.approx(norm * epsilon, abs=1e-9)
        assert bound is not None
        assert moved < bound


def test_a_constant_does_not_move() -> None:
    certificate = certify(
        lambda inputs: torch.ones(len(inputs), 2), torch.zeros(3), Smoothing(sigma=1.0), EPSILONS, normal_draws(3)
    )
    assert certificate.bounds == (0.0, 0.0, 0.0)
    assert certificate.smoothing_error == 0.0


def test_too_few_samples_certify_nothing_not_even_a_constant() -> None:
    few = Smoothing(sigma=1.0, samples=1198)
    certificate = certify(torch.zeros_like, torch.zeros(1), few, EPSILONS, normal_draws(1))
    assert certificate.smoothed.inside == 1198
    assert certificate.smoothed.abstains
    assert certificate.bounds == (None, None, None)
    assert certificate.smoothing_error is None


@pytest.mark.parametrize("interpolate", [False, True])
def test_the_bound_is_an_order_statistic_or_the_authors_interpolated_quantile(interpolate: bool) -> None:
    smoothing = Smoothing(0.1, samples=1_500, certificate_samples=2_000, interpolate=interpolate)
    noise, x = normal_draws(2)(5_000), torch.zeros(2, dtype=torch.float64)
    certificate = certify(identity, x, smoothing, EPSILONS[:2], recorded_draws(noise))
    distances = np.linalg.norm(0.1 * noise[3_000:].numpy() - certificate.smoothed.center.numpy(), axis=1)
    for epsilon, bound in zip(EPSILONS, certificate.bounds, strict=False):
        quantile = smoothing.quantile(epsilon)
        assert bound is not None
        if interpolate:
            assert bound == pytest.approx(3.0 * np.quantile(distances, quantile))
        else:
            assert (distances < bound / 3.0 - 1e-12).mean() < quantile <= (distances < bound / 3.0 + 1e-12).mean()


def brute_force_center(outputs: np.ndarray) -> tuple[int, float]:
    medians = [np.median(np.linalg.norm(outputs - each, axis=1)) for each in outputs]
    return int(np.argmin(medians)), float(np.min(medians))


@pytest.mark.parametrize("number", [1, 2, 7, 8])
def test_the_center_has_the_smallest_median_distance(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tql_lightning.evaluation.smoothing.DISTANCES_AT_ONCE", 3 * number)  # in several blocks
    outputs = normal_draws(3)(number)
    index, radius = median_center(outputs, outputs)
    expected = brute_force_center(outputs.numpy())
    assert index == expected[0]
    assert radius == pytest.approx(expected[1])


def test_equal_centers_give_the_first() -> None:
    outputs = torch.tensor([[5.0], [1.0], [1.0], [1.0]])
    assert median_center(outputs, outputs) == (1, 0.0)


def test_smooth_finds_the_center_that_certify_certifies() -> None:
    smoothing, x = Smoothing(0.3, samples=2_000, candidates=30), torch.zeros(2, dtype=torch.float64)
    assert torch.equal(
        smooth(torch.tanh, x, smoothing, normal_draws(2)).center,
        certify(torch.tanh, x, smoothing, (0.1,), normal_draws(2)).smoothed.center,
    )


def test_samples_that_are_needed_are_just_enough() -> None:
    assert Smoothing(0.1).samples_needed() == 1199
    assert Smoothing(0.1, samples=1199).delta_1 <= 0.05 < Smoothing(0.1, samples=1198).delta_1
    for epsilon in (0.05, 0.2, 0.25):
        needed = int(Smoothing(0.1).certificate_samples_needed(epsilon))
        assert Smoothing(0.1, certificate_samples=needed).quantile(epsilon) <= 1.0
        assert Smoothing(0.1, certificate_samples=needed - 1).quantile(epsilon) > 1.0
    assert Smoothing(0.1).certificate_samples_needed(10.0) == math.inf


@pytest.mark.parametrize(("samples", "ratio"), [(1_000_000, 2.82), (100_000, 2.44), (10_000, 2.01)])
def test_the_largest_ratio_of_epsilon_to_sigma_is_the_published_one(samples: int, ratio: float) -> None:
    smoothing = Smoothing(1.0, certificate_samples=samples)
    assert smoothing.quantile(ratio - 0.01) < 1.0 < smoothing.quantile(ratio + 0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Smoothing(0.0), "sigma: expected a finite number above 0, found 0.0"),
        (lambda: Smoothing(0.1, delta=0.5), "delta: expected between 0 and 0.5, found 0.5"),
        (lambda: Smoothing(0.1, alpha_2=0.0), "alpha_2: expected between 0 and 1, found 0.0"),
        (lambda: Smoothing(0.1, samples=0), "samples: expected at least 1, found 0"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
