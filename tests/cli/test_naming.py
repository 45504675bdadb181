"""The default folder of a run is named by everything that its command line varies."""

from __future__ import annotations

import shlex

import pytest

from tests.command_line import parse_fit
from tests.test_readme import commands
from tql_lightning.cli.naming import default_folder


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("--config quickstart", "pendulum/tql"),
        ("--config quickstart --config method/iql", "pendulum/iql"),
        ("--config quickstart --model=mine.IQL", "pendulum/mine.IQL"),
        ("--config quickstart --data.n_step=3 --model.discount 0.9", "pendulum/tql,data.n_step=3,discount=0.9"),
        ("--config ogbench/scene --config size/26m --config variant/qk_norm", "scene/TASK/tql-26m-qk_norm"),
        ("--config ogbench/scene --data.dataset.task=3 --config smoke", "scene/TASK/tql-smoke"),
        ("--data.dataset=scene-play-singletask-task4-v0", "scene-play/task_4/tql"),
        ("--data.dataset=scene-play-singletask-v0", "scene-play/task_default/tql"),
        ("--data.dataset=data/x.npz --config quickstart", "x/tql-quickstart"),
        ("--data.dataset=data/x.npz --config own --data.dataset.keys={}", "x/tql"),
        ("--config mine.yaml --config size/1m", "mine/tql-1m"),
        ("", "tql/tql"),
    ],
)
def test_a_folder_is_named_by_what_varies(line: str, folder: str) -> None:
    expected = folder.replace("TASK", "task_${..data.dataset.init_args.task}")
    assert default_folder(line.split()) == f"runs/{expected}/seed_${{..seed_everything}}"


def test_trainer_seed_and_checkpoint_leave_the_folder_as_it_is() -> None:
    more = ["--trainer.max_steps=5", "--ckpt_path=last", "--seed_everything=3", "--force=true"]
    assert default_folder(["--config", "quickstart", *more]) == default_folder(["--config", "quickstart"])


def test_long_and_unsafe_settings_become_names_that_differ() -> None:
    values = ("a/b", "a:b", "x" * 300, "x" * 301)
    names = {default_folder(["--config", "quickstart", f"--model.critic={value}"]) for value in values}
    assert len(names) == len(values)
    assert all(len(part) <= 120 and name.count("/") == 3 for name in names for part in name.split("/"))


def test_the_readmes_commands_share_no_folder() -> None:
    fits = [arguments[1:] for arguments in commands("tql") if arguments[0] == "fit" and "--help" not in arguments]
    begun = [arguments for arguments in fits if not any("ckpt_path" in each for each in arguments)]
    given = [next((each for each in arguments if "default_root_dir" in each), None) for arguments in begun]
    folders = [own or default_folder(arguments) for own, arguments in zip(given, begun, strict=True)]
    assert len(folders) > 5
    # Tasks are in the folder by reference, so that these commands differ in it although their texts do not.
    tasks = [shlex.join(each for each in arguments if ".task" in each) for arguments in begun]
    assert len(set(zip(folders, tasks, strict=True))) == len(folders)


def test_a_configuration_of_the_users_decides_about_the_folder(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("mine.yaml", "w") as file:  # noqa: PTH123
        file.write("trainer: {default_root_dir: mine}\n")
    parsed = parse_fit(monkeypatch, "--config", "quickstart", "--config", "mine.yaml")
    assert parsed["trainer"]["default_root_dir"] == "mine"
    assert parsed["trainer"]["logger"][0]["init_args"]["save_dir"] == "mine"
