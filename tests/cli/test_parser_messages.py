"""jsonargparse's errors say in English alone which name is wrong; another version of it may word them otherwise."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from tql_lightning import callbacks
from tql_lightning.cli.parser_messages import (
    BOILERPLATE,
    informative_lines,
    is_unknown_key,
    key_of,
    no_dataset,
    unknown_argument,
    unrecognized,
)
from tql_lightning.data.transitions import TransitionDataset
from tql_lightning.nn.critic import Critic
from tql_lightning.nn.temperature import EntropyControl

INSTALLED = f"jsonargparse {version('jsonargparse')} words this otherwise: mend cli/parser_messages.py"
EVALUATION = f"{callbacks.RolloutEvaluation.__module__}.RolloutEvaluation"
SHORT = "tql_lightning.callbacks.RolloutEvaluation"
WRONG_TARGETS = {"class_path": "tql_lightning.AttentionTemperature", "init_args": {"targets": [3.0]}}


def message_about(given: list[str] | dict[str, Any]) -> ArgumentError:
    """The error about a command line, or about settings, of a parser that is set up as that of `tql fit`."""
    below = LightningArgumentParser(exit_on_error=False, parser_mode="omegaconf+", allow_abbrev=False)
    below.add_argument("--updates", type=int)
    below.add_argument("--critic", type=Callable[[int, int], Critic], enable_path=True)
    below.add_argument("--control", type=Callable[[int, int], EntropyControl] | None)
    below.add_argument("--dataset", type=TransitionDataset)
    below.add_argument("--callbacks", type=list[Callback] | Callback | None)
    below.add_argument("--logger", type=Logger | Iterable[Logger] | bool | None)
    parser = LightningArgumentParser(exit_on_error=False, parser_mode="omegaconf+", allow_abbrev=False)
    parser.add_subcommands().add_subcommand("fit", below)
    with pytest.raises(ArgumentError) as raised:
        parser.parse_args(["fit", *given]) if isinstance(given, list) else parser.parse_object({"fit": given})
    return raised.value


def test_the_words_that_no_option_is_are_read() -> None:
    assert unrecognized(message_about(["--nope=3", "word"])) == ["--nope=3", "word"], INSTALLED
    assert unrecognized(message_about(["--updates=many"])) == []


def test_the_key_of_a_wrong_value_and_an_unknown_key_are_read() -> None:
    wrong, unknown = message_about(["--updates=many"]), message_about({"updats": 3})
    assert (key_of(wrong), is_unknown_key(wrong)) == ("updates", False), INSTALLED
    assert (key_of(unknown), is_unknown_key(unknown)) == ("updats", True), INSTALLED


@pytest.mark.parametrize(
    ("given", "path", "argument"),
    [
        (["--critic=tql_lightning.MLPCritic", "--critic.size=3"], "tql_lightning.MLPCritic", "size"),
        (
            ["--callbacks=RolloutEvaluation", "--callbacks.epsodes=3"],
            "tql_lightning.callbacks.RolloutEvaluation",
            "epsodes",
        ),
        ({"callbacks": [{"class_path": EVALUATION, "init_args": {"epsodes": 3}}]}, EVALUATION, "epsodes"),
    ],
)
def test_the_argument_that_a_class_does_not_take_is_read(given: Any, path: str, argument: str) -> None:
    assert unknown_argument(message_about(given)) == (path, argument), INSTALLED


def test_the_function_that_returns_no_dataset_is_read() -> None:
    assert no_dataset(message_about(["--dataset=json.loads"])) == "json.loads", INSTALLED


def test_of_a_long_message_the_lines_remain_that_name_the_mistake() -> None:
    texts = [
        str(message_about(given))
        for given in (
            ["--callbacks+=RolloutEvaluation", "--callbacks.epsodes=3"],
            [f'--callbacks=[{{"class_path": "{EVALUATION}", "init_args": {{"epsodes": 3}}}}]'],
            ["--logger=Nope"],
            ["--critic=tql_lightning.MLPCritc"],
            {"control": WRONG_TARGETS},
            {"control": Namespace(WRONG_TARGETS)},
        )
    ]
    lines = {line.strip().removeprefix("- ") for text in texts for line in text.splitlines()}
    unused = [start for start in BOILERPLATE if not any(line.startswith(start) for line in lines)]
    assert unused == [], INSTALLED
    shown = [informative_lines(text, 500) for text in texts]
    assert all(len(each) <= 4 for each in shown), INSTALLED
    assert shown[3][-1].endswith(
        "module 'tql_lightning' has no attribute 'MLPCritc'. Got value: tql_lightning.MLPCritc"
    )
