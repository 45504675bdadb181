"""Control sequences of a terminal in files are shown as text, wherever something of a file is shown."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from tqdm import tqdm

from tests.command_line import TINY, call_tql
from tests.export.test_policy import trained
from tests.report.runs import make_run
from tests.toy import toy_dataset
from tql_lightning import Policy
from tql_lightning.data.sources.npy_folder import save_npy_folder
from tql_lightning.export.policy_folder import PolicyError
from tql_lightning.trust import output
from tql_lightning.trust.output import plain_messages, plain_output
from tql_lightning.trust.text import LONGEST_MESSAGE, FileError, escaped, shown

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202etxt\u2028\x00"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202etxt\u2028\x00"


def plain(text: str) -> bool:
    return all(each.isprintable() or each in "\n" for each in text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def test_text_is_shown_short_and_escaped() -> None:
    assert escaped(HOSTILE) == SHOWN
    assert escaped("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert escaped("plain text, é, 模型, ✓") == "plain text, é, 模型, ✓"
    assert shown("x" * 100) == "x" * 80 + "..."
    assert shown(10**400) == "a number of 1329 bits"
    assert shown([HOSTILE]) == "list"
    assert [shown(each) for each in (None, True, 1.5, 3)] == ["None", "True", "1.5", "3"]
    assert str(FileError(f"{HOSTILE}\nsecond line")) == f"{SHOWN}\nsecond line"
    assert len(str(FileError("x" * 10**6))) == LONGEST_MESSAGE + 3


Change = Callable[[dict[str, Any]], object]
CHECKPOINTS: dict[str, Change] = {
    "environment": lambda raw: raw["OfflineDataModule"].update(env_id=f"{HOSTILE}-v0"),
    "class path": lambda raw: raw["hyper_parameters"]["critic"].update(class_path=f"{HOSTILE}.Critic"),
    "setting": lambda raw: raw["hyper_parameters"].update({HOSTILE: 1}),
    "value of a setting": lambda raw: raw["hyper_parameters"].update(extraction=HOSTILE),
    "maker": lambda raw: raw["hyper_parameters"].update(_instantiator=HOSTILE),
    "weight": lambda raw: raw["state_dict"].update({HOSTILE: torch.ones(1)}),
    "weight of no kind": lambda raw: raw["state_dict"].update({HOSTILE: "x"}),
    "weight that is none": lambda raw: raw["state_dict"].update({HOSTILE: torch.tensor(float("nan"))}),
}


@pytest.mark.parametrize("command", ["evaluate", "export", "validate"])
@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_refused_checkpoint_prints_plain_text(command: str, change: Change, whole: Path, tmp_path: Path) -> None:
    raw = torch.load(whole, weights_only=True)
    change(raw)
    torch.save(raw, tmp_path / "forged.ckpt")
    (tmp_path / "tiny.yaml").write_text(TINY)
    arguments = ["--config", "tiny.yaml", "--data.dataset=tests.toy.toy_dataset", "--ckpt_path=forged.ckpt"]
    called = call_tql(tmp_path, command, *(arguments if command == "validate" else ["forged.ckpt"]))
    assert plain(called.stdout + called.stderr)
    assert called.returncode == (2 if command == "evaluate" or change is not CHECKPOINTS["environment"] else 0)


def npz(**changes: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        dataset = toy_dataset()
        save_npy_folder(folder / "data", dataset)
        settings = json.loads((folder / "data" / "metadata.json").read_text())
        (folder / "data" / "metadata.json").write_text(json.dumps(settings | changes))
        return folder / "data"

    return write


def hdf5(folder: Path) -> Path:
    with h5py.File(folder / "data.hdf5", "w") as file:
        file[HOSTILE.replace("\x00", "")] = np.zeros(3)
    return folder / "data.hdf5"


@pytest.mark.parametrize(
    "write", [npz(env_id=f"{HOSTILE}-v0"), npz(name=HOSTILE), npz(**{HOSTILE: 1}), npz(env_id=[HOSTILE]), hdf5]
)
def test_a_dataset_prints_plain_text(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    called = call_tql(tmp_path, "data", "inspect", str(path))
    assert plain(called.stdout + called.stderr)


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml", "evaluations/update_000000000.json"])
def test_a_report_prints_plain_text(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(f"step,{HOSTILE}\n0,{HOSTILE}\n" if name.endswith("csv") else HOSTILE)
    called = call_tql(tmp_path, "report", "run")
    assert called.returncode == 2
    assert plain(called.stdout + called.stderr)


def test_a_configuration_prints_plain_text(tmp_path: Path) -> None:
    (tmp_path / "forged.yaml").write_text(yaml.safe_dump({"model": {HOSTILE: HOSTILE}, HOSTILE: 1}))
    called = call_tql(tmp_path, "fit", "--config", "forged.yaml")
    assert called.returncode == 2
    assert plain(called.stdout + called.stderr)


def test_a_policy_prints_plain_text(tmp_path: Path) -> None:
    for metadata in ({HOSTILE: HOSTILE}, {"format_version": HOSTILE, "format": HOSTILE}):
        keys = json.loads(json.dumps(metadata))
        (tmp_path / "metadata.json").write_text(json.dumps(keys))
        with pytest.raises(PolicyError) as refused:
            Policy.load(tmp_path)
        assert plain(str(refused.value))


def test_warnings_and_log_records_are_plain_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: given.append(str(message)))
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logger = logging.getLogger("tests.plain")
    logger.addHandler(handler)
    with plain_messages():
        warnings.showwarning(UserWarning(f"{HOSTILE}\nsecond"), UserWarning, "file.py", 1)
        warnings.showwarning("plain", UserWarning, "file.py", 1)
        logger.warning("a %s of %s", HOSTILE, "it")
        logger.warning("plain %d", 3)
    logger.removeHandler(handler)
    assert given == [f"{SHOWN}\nsecond", "plain"]
    assert logged.getvalue() == f"a {SHOWN} of it\nplain 3\n"


def test_our_own_warnings_show_no_line_of_source() -> None:
    own, foreign = (("mind the gap", UserWarning, file, 1) for file in (output.__file__, "elsewhere.py"))
    before = [warnings.formatwarning(*given) for given in (own, foreign)]
    with plain_messages():
        assert warnings.formatwarning(*own) == "tql: warning: mind the gap\n"
        assert warnings.formatwarning(*foreign) == before[1]
    assert [warnings.formatwarning(*given) for given in (own, foreign)] == before


def test_progress_bars_move_and_say_nothing_else_of_a_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with plain_output():
        for _ in tqdm(range(2), desc=HOSTILE, position=1):
            pass
        print(f"{HOSTILE}\tvalue", file=sys.stderr)
    text = written.getvalue()
    assert "\r" in text
    assert "\x1b[A" in text
    assert SHOWN in text
    assert plain(text.replace("\r", "").replace("\x1b[A", "").replace("\t", ""))
