"""One sentence about what the runs of a report have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tql_lightning.report.methods import Comparison, Result
from tql_lightning.report.numbers import Score, number


def verdict(
    found: Sequence[Result],
    pairs: Sequence[Comparison],
    score: Score,
    baselines: Mapping[str, float],
) -> str | None:
    """The best method, how sure that is, and what it improves on; None if nothing was evaluated.

    Args:
        found: Results; the first group of one task, or of all, is judged.
        pairs: Comparisons of methods.
        score: What the estimates are of.
        baselines: Mean scores of what the methods are compared with.
    """
    inside = [result for result in found if result.task == found[0].task and result.estimate is not None]
    if not inside:
        return None
    ranked = sorted(inside, key=lambda result: result.estimate.value if result.estimate else 0.0, reverse=True)
    best, others = ranked[0], ranked[1:]
    assert best.estimate is not None
    place = "over all tasks" if best.task is None else f"on {best.task}"
    spread = ""
    if best.over_runs or best.over_episodes:
        spread = f" (95 % interval {score.text(best.estimate.low)} to {score.text(best.estimate.high)})"
    runs = f"{best.runs} runs" if best.runs > 1 else "one run"
    reached = f"{score.text(best.estimate.value)}{score.unit}"
    sentence = f"{best.method.label} reaches a {score.title} of {reached}{spread} {place} with {runs}"
    if others:
        sentence += _against(best, others[0], pairs, score)
        better = {name: value for name, value in baselines.items() if value > best.estimate.value}
        sentence += "".join(f"; {name} has {score.text(value)}{score.unit}" for name, value in better.items())
    elif baselines:
        named = [
            f"{score.text(value)}{score.unit} of {'its ' if name == 'dataset' else ''}{name}"
            for name, value in baselines.items()
        ]
        relation = "above" if best.estimate.low > max(baselines.values()) else "against"
        sentence += f", {relation} {' and '.join(named)}"
    return f"{sentence}."


def _against(best: Result, second: Result, pairs: Sequence[Comparison], score: Score) -> str:
    """How sure it is that the best method is better than the second."""
    assert second.estimate is not None
    other = f"{second.method.label} ({score.text(second.estimate.value)}{score.unit})"
    if best.runs < 2 or second.runs < 2:
        few = "one run each does" if best.runs == second.runs else "a single run of one of them does"
        return f", the next is {other}; {few} not tell which method is better"
    pair = next((each for each in pairs if {each.method.index, each.other.index}
                 == {best.method.index, second.method.index}), None)  # fmt: skip
    if pair is None or not pair.over_runs or pair.method.index != best.method.index:
        return f", the next is {other}"
    if pair.estimate.value == 1.0:  # a fact about these runs; as a probability it would say more than so few can
        return f"; each of its runs beats every run of {other}"
    sure = pair.estimate.low > 0.5
    chance = f"with probability {number(pair.estimate.value)}"
    if sure:
        return f"; {chance} a run of it beats one of {other}"
    return f", the next is {other}; {chance} a run of it beats one of that, which may be chance"
