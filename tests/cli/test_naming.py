"""The default folder of a run is named by everything that its command line varies."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.command_line import parse_fit
from tql_lightning.cli.naming import default_folder

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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
        ("--config quickstart --online.steps=50 --weights=runs", "pendulum/tql,online.steps=50,weights=runs"),
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


def shown_fits(document: Path) -> set[tuple[str, ...]]:
    """Arguments of the commands of a document that begin a run."""
    blocks = re.findall(r"```(?:console|sh)\n(.*?)```", document.read_text(), flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    fits = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("tql fit ")]
    return {tuple(arguments) for arguments in fits if not re.search("help|ckpt_path|print_config", str(arguments))}


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_commands_that_a_document_shows_share_a_folder_only_if_the_trainer_alone_differs(document: Path) -> None:
    runs: dict[str, set[tuple[str, ...]]] = {}
    for arguments in shown_fits(document):
        task = [each for each in arguments if each.startswith("--data.dataset.task")]  # in the folder by reference
        own = [each for each in arguments if each.startswith("--trainer.default_root_dir")]
        rest = tuple(each for each in arguments if not each.startswith("--trainer."))
        if not own:
            runs.setdefault(f"{default_folder(arguments)} {task}", set()).add(rest)
    assert [folder for folder, different in runs.items() if len(different) > 1] == []


def test_a_configuration_of_the_users_decides_about_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer: {default_root_dir: mine}\n")
    parsed = parse_fit(monkeypatch, "--config", "quickstart", "--config", "mine.yaml")
    assert parsed["trainer"]["default_root_dir"] == "mine"
    assert parsed["trainer"]["logger"][0]["init_args"]["save_dir"] == "mine"
