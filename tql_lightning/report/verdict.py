"""One sentence about what the runs of a report have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tql_lightning.report.methods import Comparison, Result

Format = Callable[[float], str]


def verdict(
    found: Sequence[Result],
    pairs: Sequence[Comparison],
    score: str,
    baselines: Mapping[str, float],
    number: Format,
) -> str | None:
    """The best method, how sure that is, and what it improves on; None if nothing was evaluated.

    Args:
        found: Results; the first group of one task, or of all, is judged.
        pairs: Comparisons of methods.
        score: Name of the score.
        baselines: Mean returns that the score is compared with, where it is a return.
        number: Formats a number.
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
        spread = f" (95 % interval {number(best.estimate.low)} to {number(best.estimate.high)})"
    runs = f"{best.runs} runs" if best.runs > 1 else "one run"
    sentence = f"{best.method.label} reaches a {score} of {number(best.estimate.value)}{spread} {place} with {runs}"
    if others:
        sentence += _against(best, others[0], pairs, number)
    elif baselines:
        named = [f"{number(value)} of its {name}" if name == "dataset" else f"{number(value)} of {name}"
                 for name, value in baselines.items()]  # fmt: skip
        relation = "above" if best.estimate.low > max(baselines.values()) else "against"
        sentence += f", {relation} {' and '.join(named)}"
    return f"{sentence}."


def _against(best: Result, second: Result, pairs: Sequence[Comparison], number: Format) -> str:
    """How sure it is that the best method is better than the second."""
    assert second.estimate is not None
    other = f"{second.method.label} ({number(second.estimate.value)})"
    if best.runs < 2 or second.runs < 2:
        return f", the next is {other}; one run each does not tell which method is better"
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
