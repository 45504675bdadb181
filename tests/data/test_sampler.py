"""The stream of minibatches is a function of (seed, update, row) and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tql_lightning.algorithms.tql import TQLNoise
from tql_lightning.batch import Batch, Draw, UpdateSpec, at_update
from tql_lightning.data.counter_random import normal, uniform
from tql_lightning.data.sampler import TrainingStream, TransitionSampler, ValidationPass
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.data.windows import Span

NORMAL = Draw("normal", (1,))
DRAWS = dict.fromkeys(("next_action", "flow_x0", "flow_t", "distillation", "metric"), NORMAL)
SPEC = UpdateSpec(Batch, TQLNoise, DRAWS | {"flow_t": Draw("uniform", (1,))})


def dataset(size: int = 50) -> TransitionDataset:
    rows = np.arange(size, dtype=np.float32)
    ends = np.zeros(size, dtype=bool)
    ends[-1] = True
    return TransitionDataset.from_arrays(
        rows[:, None], (rows[:, None] % 2) - 0.5, rows, ends, np.zeros(size), rows[:, None] + 1, name="rows"
    )


def sampler_of(data: TransitionDataset, batch_size: int, seed: int, **settings: Any) -> TransitionSampler:
    """A sampler of what TQL reads."""
    return TransitionSampler(data, batch_size, seed, spec=SPEC, **settings)


def equal(left: tuple[Batch, TQLNoise], right: tuple[Batch, TQLNoise]) -> bool:
    pairs = zip((*left[0], *left[1]), (*right[0], *right[1]), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_an_update_draws_the_same_in_any_chunk() -> None:
    sampler = sampler_of(dataset(), batch_size=8, seed=3)
    batches, noises = sampler.chunk(0, 10)
    alone = sampler.chunk(7, 1)
    assert equal((at_update(batches, 7), at_update(noises, 7)), (at_update(alone[0], 0), at_update(alone[1], 0)))


def test_two_ranks_draw_the_halves_of_one_process() -> None:
    whole = sampler_of(dataset(), batch_size=8, seed=3).chunk(5, 2)
    halves = [sampler_of(dataset(), 8, 3, rank=rank, world_size=2).chunk(5, 2) for rank in (0, 1)]
    for part in range(2):
        for name, tensor in whole[part]._asdict().items():
            joined = torch.cat([getattr(half[part], name) for half in halves], dim=1)
            assert torch.equal(joined, tensor), name


def test_seeds_and_updates_differ() -> None:
    first, second = sampler_of(dataset(), 64, 0), sampler_of(dataset(), 64, 1)
    assert not equal(first.chunk(0, 1), second.chunk(0, 1))
    assert not equal(first.chunk(0, 1), first.chunk(1, 1))


def test_a_row_is_one_transition() -> None:
    batch, _ = sampler_of(dataset(), 256, 0).chunk(0, 3)
    assert torch.equal(batch.next_observations[..., 0], batch.observations[..., 0] + 1)
    assert torch.equal(batch.rewards, batch.observations[..., 0])
    assert torch.equal(batch.masks == 0, batch.rewards == 49)


@pytest.mark.parametrize("span", [Span(), Span(n_step=3), Span(n_step=2, action_chunk=2)])
def test_an_updates_tensors_have_no_gaps_so_that_one_launch_takes_all_of_them_over(span: Span) -> None:
    """On CUDA ``torch._foreach_copy_`` copies one by one as soon as a single one lies otherwise than its copy."""
    batches, noises = sampler_of(dataset(), 8, 0, span=span).chunk(0, 3)
    for name, tensor in (at_update(batches, 1)._asdict() | at_update(noises, 1)._asdict()).items():
        assert tensor.stride() == tensor.clone().stride(), name


def test_indices_are_uniform_and_noise_is_standard_normal() -> None:
    batch, noise = sampler_of(dataset(), 1000, 0).chunk(0, 50)
    counts = torch.bincount(batch.rewards.long().flatten(), minlength=50).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3
    for name, tensor in noise._asdict().items():
        values = tensor.flatten().double().numpy()
        reference = "uniform" if name == "flow_t" else "norm"
        assert stats.kstest(values, reference).pvalue > 1e-3, name
    columns = torch.stack([noise.next_action, noise.flow_x0, noise.distillation, noise.metric]).flatten(1)
    correlation = torch.corrcoef(columns) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_columns_and_neighbouring_counters_are_independent() -> None:
    numbers = uniform(0, torch.arange(200), torch.arange(50), 4)
    flat = numbers.flatten(0, 1).T - 0.5
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05
    neighbours = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten()]))[0, 1]
    assert neighbours.abs() < 0.03
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0


def test_normal_numbers_are_finite_at_the_ends_of_the_interval() -> None:
    ends = torch.tensor([[0.0, 1.0 - 2.0**-53, 0.0, 1.0 - 2.0**-53]], dtype=torch.float64)
    assert torch.isfinite(normal(ends)).all()


def test_splitmix_finaliser_matches_the_published_sequence() -> None:
    # First outputs of SplitMix64 with state 0, as in its reference implementation.
    from tql_lightning.data.counter_random import _INCREMENT, _signed, mix

    states = torch.tensor([_signed(_INCREMENT * i) for i in (1, 2, 3)])
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in mix(states).tolist()] == expected


@pytest.mark.parametrize(("start", "sizes"), [(0, [4, 4, 2]), (3, [1, 4, 2]), (8, [2]), (10, [])])
def test_the_stream_ends_chunks_on_multiples_and_at_the_last_update(start: int, sizes: list[int]) -> None:
    stream = TrainingStream(sampler_of(dataset(), 2, 0).chunk, lambda: start, 4, last_update=10)
    assert [len(batch.rewards) for batch, _ in stream] == sizes


def test_a_stream_continued_anywhere_equals_the_uninterrupted_one() -> None:
    sampler = sampler_of(dataset(), 4, 0)

    def updates(start: int) -> list[tuple[Batch, TQLNoise]]:
        stream = TrainingStream(sampler.chunk, lambda: start, 4, last_update=12)
        return [(at_update(b, k), at_update(n, k)) for b, n in stream for k in range(len(b.rewards))]

    whole, rest = updates(0), updates(5)
    assert len(rest) == 7
    assert all(equal(one, other) for one, other in zip(whole[5:], rest, strict=True))


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a positive multiple of 3, found 8; set it to 6 or 9, or change"):
        sampler_of(dataset(), 8, 0, rank=0, world_size=3)


def test_a_pass_is_dealt_out_to_ranks_by_batches_and_none_is_left_without() -> None:
    whole = list(ValidationPass(dataset(), batch_size=8, seed=0, spec=SPEC))
    dealt = [list(ValidationPass(dataset(), 8, 0, rank=rank, world_size=3, spec=SPEC)) for rank in range(3)]
    assert [len(part) for part in dealt] == [3, 2, 2]
    for number, expected in enumerate(whole):
        assert equal(dealt[number % 3][number // 3], expected)
    few = [list(ValidationPass(dataset(), 25, 0, rank=rank, world_size=3, spec=SPEC)) for rank in range(3)]
    assert [len(part) for part in few] == [2, 2, 2]


def test_validation_passes_over_every_transition_once_with_the_same_noise() -> None:
    passes = ValidationPass(dataset(), batch_size=8, seed=0, spec=SPEC)
    first, second = list(passes), list(passes)
    assert len(first) == len(passes) == 7
    assert torch.cat([batch.rewards for batch, _ in first]).tolist() == list(range(50))
    assert all(equal(one, other) for one, other in zip(first, second, strict=True))


def test_numbers_of_numpy_draw_what_pythons_do() -> None:
    drawn = [
        TransitionSampler(dataset(), kind(8), seed=kind(3)).chunk(kind(2), kind(1))
        for kind in (int, np.int64, np.int32)
    ]
    for batch, _ in drawn[1:]:
        assert all(map(torch.equal, batch, drawn[0][0]))
