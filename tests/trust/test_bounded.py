"""Small files of others are read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forging import NESTED
from tql_lightning.trust.bounded import MOST_BYTES, read_json, read_text
from tql_lightning.trust.yaml_text import read_yaml


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"a": "é"}')
    assert read_text(tmp_path / "file") == '{"a": "é"}'
    assert read_json(tmp_path / "file") == {"a": "é"}


def test_what_is_no_small_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_text("12345")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", MOST_BYTES + 1)
    for name, most, message in (
        ("pipe", MOST_BYTES, "found a pipe"),
        (".", MOST_BYTES, "found a pipe, a folder or a device"),
        ("long", 4, "expected at most 4 bytes, found 5"),
        ("hole", MOST_BYTES, "expected at most"),
        ("hole", 2 * MOST_BYTES, "found a sparse file"),
    ):
        with pytest.raises(ValueError, match=message):
            read_text(tmp_path / name, most)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing")


@pytest.mark.parametrize("content", [NESTED, "9" * 5000, "{", "\ud800"])
def test_what_is_no_json_is_a_value_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content, errors="surrogatepass")
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    [
        "x: 1" + ":1" * 200_000,
        "x: 1" + ":1" * 400 + ".0",
        f"x: !!int ' 1{': 1' * 200_000}'",
        f"x: !!float '1{':1e5' * 100}'",
        "x: !!bool y",
        "x: " + "a" * 2_000_000,
    ],
)
def test_yaml_whose_values_take_for_ever_or_cannot_be_made_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"YAML: expected") as refused:
        read_yaml(text)
    assert len(str(refused.value)) < 200


def test_yaml_of_the_time_and_of_long_text_is_read() -> None:
    text = "a" * 5000
    assert read_yaml(f"x: 1:30\ny: {text}\nz: {'9' * 400}") == {"x": 90, "y": text, "z": int("9" * 400)}
