"""The report: its content, its errors, and that no user text becomes markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.report.runs import NUMBERS, make_run
from tql_lightning.report.charts import MAX_POINTS, constants, sections
from tql_lightning.report.media import collect_media
from tql_lightning.report.methods import choose_score, comparisons, differences, group_methods, results
from tql_lightning.report.numbers import number
from tql_lightning.report.page import write_report
from tql_lightning.report.runs import ReportError, read_runs
from tql_lightning.run.folder import (
    ATTENTION_MAP,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    Q_LANDSCAPE,
    VIDEO_FOLDER,
    evaluation_file,
    picture_file,
)
from tql_lightning.run.provenance import read_starts, record_start


@pytest.fixture
def two_methods(tmp_path: Path) -> Path:
    """Three seeds of one method, and two of another with a different discount."""
    for seed, final in enumerate((0.2, 0.4, 0.9)):
        make_run(tmp_path / "tql" / f"seed_{seed}", seed, final)
    for seed, final in enumerate((0.1, 0.3)):
        make_run(tmp_path / "plain" / f"seed_{seed}", seed, final, discount=0.9)
    return tmp_path


def page_of(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "page.html").read_text()


def test_runs_are_grouped_by_configuration_apart_from_seed_and_folder(two_methods: Path) -> None:
    methods = group_methods(read_runs([two_methods]))
    assert {method.label: len(method.runs) for method in methods} == {"tql": 3, "plain": 2}


def test_a_method_is_summed_up_by_its_last_evaluations(two_methods: Path) -> None:
    runs = read_runs([two_methods / "tql", two_methods / "plain"])
    score = choose_score(runs)
    assert score == "success_rate"
    methods = group_methods(runs)
    tql, plain = results(methods, ["Pendulum-v1"], score)
    assert tql.estimate is not None
    assert plain.estimate is not None
    assert tql.estimate.value == pytest.approx(0.5)
    assert (plain.estimate.low, plain.estimate.high) == pytest.approx((0.1, 0.3))
    (pair,) = comparisons(methods, ["Pendulum-v1"], score)
    assert (pair.method.label, pair.other.label) == ("tql", "plain")
    assert pair.estimate.value == pytest.approx(5 / 6)


def test_tasks_are_aggregated_where_they_share_a_scale(tmp_path: Path) -> None:
    for task in ("cube-task1", "cube-task2"):
        for seed in (0, 1):
            make_run(tmp_path / "tql" / task / f"seed_{seed}", seed, 0.5 + 0.1 * seed, env_id=task)
    runs = read_runs([tmp_path])
    methods = group_methods(runs)
    assert len(methods) == 1
    found = results(methods, ["cube-task1", "cube-task2"], "success_rate")
    assert [(result.task, result.runs) for result in found] == [(None, 4), ("cube-task1", 2), ("cube-task2", 2)]
    returns = results(methods, ["cube-task1", "cube-task2"], "return")
    assert [result.task for result in returns] == ["cube-task1", "cube-task2"]


def test_curves_hold_interval_and_every_run_at_every_update(two_methods: Path) -> None:
    methods = group_methods(read_runs([two_methods / "tql"]))
    by_title = dict(sections(methods, ["Pendulum-v1"]))
    chart = by_title["Evaluation"][0]
    assert chart["key"] == "eval/success_rate"
    (line,) = chart["lines"]
    assert line["x"] == [0, 100, 200]
    assert line["y"] == pytest.approx([0.0, 25.0, 50.0])
    assert line["each"] == [[0.0, 10.0, 20.0], [0.0, 20.0, 40.0], [0.0, 45.0, 90.0]]
    assert (line["low"][2], line["high"][2]) == pytest.approx((20.0, 90.0))
    entropy, target = by_title["Attention entropy"][0]["lines"]
    assert target["dashed"]
    assert target["y"] == [1.2, 1.2, 1.2]
    assert entropy["y"] == pytest.approx([1.0, 0.7, 0.4])


def test_curves_show_where_a_run_goes_online(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    metrics = folder / "metrics.csv"
    header, *rows = metrics.read_text().splitlines()
    with_steps = [f"{row},{steps}" for row, steps in zip(rows, (0, 0, 50), strict=True)]
    metrics.write_text("\n".join([f"{header},env_steps", *with_steps]))
    (run,) = read_runs([folder])
    assert run.online_from == 100
    charts = dict(sections(group_methods([run]), [run.task]))
    assert charts["Evaluation"][0]["lines"][0]["online"] == 100
    assert charts["Online phase"][0]["title"] == "env steps"


def test_what_never_changes_is_listed_and_not_drawn_but_for_scores(tmp_path: Path) -> None:
    columns = (
        "step,eval/success_rate,eval/failures,train/td_loss,train/entropy_loss,train/learning_rate/actor,train/nan"
    )
    for seed, rate in enumerate((0.5, 1.0)):
        rows = [f"{update},0,0,{update + seed},0,{rate},nan" for update in (1, 2)]
        (make_run(tmp_path / f"seed_{seed}", seed) / METRICS_FILE).write_text("\n".join([columns, *rows]) + "\n")
    methods = group_methods(read_runs([tmp_path]))
    drawn = [chart["key"] for _, charts in sections(methods, ["Pendulum-v1"]) for chart in charts]
    assert drawn == ["eval/success_rate", "train/td_loss"]
    assert {key: values for _, key, values in constants(methods, ["Pendulum-v1"])} == {
        "eval/failures": ["0"],
        "train/entropy_loss": ["0"],
        "train/learning_rate/actor": ["0.5 to 1"],
        "train/nan": ["–"],
    }
    page = page_of(tmp_path / "seed_0")
    assert re.search(r"<code[^>]*>train/learning_rate/actor</code></th><td[^>]*>0\.5<", page)


def test_a_page_without_constants_has_no_place_for_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "Constant in every run" not in page_of(run)
    (run / METRICS_FILE).write_text("step,train/td_loss,train/x\n1,2,0\n2,3,0\n")
    assert "Constant in every run" in page_of(run)


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = "\n".join(f"{update},{update / 7}" for update in range(1, 5001))
    (run / METRICS_FILE).write_text(f"step,train/td_loss\n{rows}\n")
    ((_, (chart,)),) = sections(group_methods(read_runs([run])), ["Pendulum-v1"])
    updates = chart["lines"][0]["x"]
    assert len(updates) == MAX_POINTS
    assert (updates[0], updates[-1]) == (1, 5000)


def test_the_page_names_differences_versions_and_commands(two_methods: Path) -> None:
    page = page_of(two_methods / "tql", two_methods / "plain")
    assert re.search(r"<code>model.discount</code></th><td[^>]*><code>0.99</code></td><td[^>]*><code>0.9</code>", page)
    assert "trainer.default_root_dir</code>" not in page
    assert "tql fit --config &#39;my config.yaml&#39; --seed_everything=2" in page
    assert re.search(r"torch==\d", page)
    assert "arXiv 2108.13264" in page


def test_a_setting_of_a_named_model_stands_beside_that_of_the_default_one(tmp_path: Path) -> None:
    for name, discount in (("tql", 0.99), ("other", 0.9)):
        config = make_run(tmp_path / name, discount=discount) / "config.yaml"
        model = f"model:\n  discount: {discount}\n"
        assert model in config.read_text()
        if name == "other":
            named = f"model:\n  class_path: my.Model\n  init_args:\n    discount: {discount}\n"
            config.write_text(config.read_text().replace(model, named))
    tql, other = read_runs([tmp_path / "tql", tmp_path / "other"])
    differing = differences([dict(tql.method_key), dict(other.method_key)])
    assert differing == {"model.discount": ["0.99", "0.9"], "model.class_path": ["–", "my.Model"]}
    assert tql.task == other.task == "Pendulum-v1"


def test_a_continued_run_has_a_command_for_every_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    record_start(run, ["fit", "--ckpt_path=last"], 100, "cpu", 1)
    page = page_of(run)
    assert re.search(
        r"<pre[^>]*>tql fit --config .*--seed_everything=0\ntql fit --ckpt_path=last   # from update 100\n", page
    )
    record_start(run, ["fit", "--again"], 0, "cpu", 1)
    assert [start["command"] for start in read_starts(run)] == ["tql fit --again"]


@pytest.mark.parametrize(
    "content", ["{", "[1]", pytest.param("[" * 100_000, id="deep"), '[{"command": 3}]', '{"command": "tql"}']
)
def test_a_record_of_no_kind_counts_as_none(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / ENVIRONMENT_FILE).write_text(content)
    assert "did not record their environment" in page_of(run)


def test_the_page_needs_no_network(two_methods: Path) -> None:
    page = page_of(two_methods)
    assert re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*", page) == []
    assert "url(" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_what_users_name_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)<!--"
    run = make_run(tmp_path / evil, env_id="</script><img src=x onerror=alert(1)>".replace("/", ""))
    config = run / "config.yaml"
    config.write_text(config.read_text() + "extra: '</pre><script>alert(2)</script>'\n")
    (run / METRICS_FILE).write_text("step,train/</script><b>,train/<b>\n1,2,3\n2,nan,3\n3,4,3\n")
    page = page_of(run)
    # Scripts are ours, and styles: nothing else opened or closed one.
    assert len(re.findall(r"<script", page)) == len(re.findall(r"</script>", page)) == 2
    assert "<img src=x" not in page
    assert "</pre><script" not in page
    assert "<b>" not in page


def test_a_run_of_metrics_alone_is_reported(tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / METRICS_FILE).write_text("step,train/td_loss\n1,0.5\n")
    page = page_of(run)
    assert "No run was evaluated" in page
    assert "did not record their environment" in page


def test_runs_that_ended_apart_are_marked(two_methods: Path) -> None:
    metrics = two_methods / "plain" / "seed_0" / METRICS_FILE
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:-1]) + "\n")
    assert "last evaluations were made at different updates, from 100 to 200" in page_of(two_methods)


def test_one_run_shows_the_interval_of_its_episodes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / METRICS_FILE).write_text("step,eval/return,eval/return_low,eval/return_high\n10,-5,-7,-3\n")
    methods = group_methods(read_runs([run]))
    (result,) = results(methods, ["Pendulum-v1"], "return")
    assert result.over_episodes
    assert result.estimate == (-5.0, -7.0, -3.0)


def test_media_beyond_the_limit_are_named_and_the_last_pictures_come_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pictures=True)
    videos = run / VIDEO_FOLDER
    videos.mkdir()
    (videos / "long.mp4").write_bytes(b"x" * 3000)
    runs = read_runs([run])
    whole = collect_media(runs, 10**6)
    assert list(whole.pictures) == [ATTENTION_MAP, Q_LANDSCAPE]
    for kind in whole.pictures:
        ((_, shown),) = whole.pictures[kind].items()
        assert [item.update for item in shown] == [0, 100, 200]
    assert [item.path.name for items in whole.videos.values() for item in items] == ["long.mp4"]
    assert whole.left_out == []
    one = sum(
        len(item.uri) - len("data:image/png;base64,") for item in next(iter(whole.pictures["attention_map"].values()))
    )
    tight = collect_media(runs, one // 3 * 2 + 1)
    kept = [item.update for items in tight.pictures.values() for each in items.values() for item in each]
    assert kept == [200, 200]
    assert {path.name for path in tight.left_out} >= {"long.mp4", "update_000000000.png"}
    page = write_report([run], tmp_path / "page.html", media_mb=0.0).read_text()
    assert "left out by --media_mb" in page


def test_films_over_training_have_a_slider_and_other_videos_their_names(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    names = ["update_000000000_episode_0", "update_000000200_episode_0", "update_000000200_episode_1", "best"]
    for name in names:
        (run / VIDEO_FOLDER).mkdir(exist_ok=True)
        (run / VIDEO_FOLDER / f"{name}.mp4").write_bytes(name.encode())
    (run / VIDEO_FOLDER / ".half.part.mp4").write_bytes(b"half")
    media = collect_media(read_runs([run]), 10**6)
    (first, second) = media.pictures[VIDEO_FOLDER].values()
    assert [item.update for item in first] == [0, 200]
    assert [item.update for item in second] == [200]
    assert [item.path.stem for items in media.videos.values() for item in items] == ["best"]
    page = page_of(run)
    assert 'id="videos-slider"' in page
    assert page.count("<video") == 4
    scarce = collect_media(read_runs([run]), 2 * 4 * -(-len(names[0]) // 3))  # room for two
    assert [item.update for items in scarce.pictures[VIDEO_FOLDER].values() for item in items] == [0, 200]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (METRICS_FILE, "epoch,loss\n1,2\n", "column step"),
        (METRICS_FILE, "step,loss\n1,many\n", "expected numbers"),
        (METRICS_FILE, b"\xff\xfe\x00step", METRICS_FILE),
        (METRICS_FILE, "step,loss\n1e999,1\n", "expected numbers"),
        pytest.param(METRICS_FILE, "step,loss\n1," + 200_000 * "9", "larger than field limit", id="a long number"),
        ("config.yaml", "model: [", "config.yaml: expected the configuration"),
        ("config.yaml", "- a\n", "config.yaml: expected settings by name, found list"),
        (str(evaluation_file(Path(), 100)), "{", "update_000000100.json: expected an evaluation"),
        (str(evaluation_file(Path(), 100)), "[1]", "expected an evaluation with env_id"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReportError, match=message):
        write_report([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("file", ["config.yaml", evaluation_file(Path(), 100), picture_file(Path(), ATTENTION_MAP, 9)])
@pytest.mark.parametrize("target", ["secret", "/dev/zero"])
def test_nothing_outside_a_runs_folder_is_shown(file: Path, target: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "secret").write_text("password: secret")
    (run / file).unlink(missing_ok=True)
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).symlink_to(tmp_path / target)
    with pytest.raises(ReportError, match="expected a file in the run's folder, found a link out of it"):
        write_report([run], tmp_path / "page.html")


def test_a_run_behind_a_link_is_reported(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make_run(tmp_path / "run"))
    assert "episodes" in page_of(tmp_path / "link")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.ckpt").write_bytes(b"weights")
    for name, found in (("empty", "no run in it"), ("nothing", "no such folder"), ("file.ckpt", "a file")):
        with pytest.raises(ReportError, match=found):
            read_runs([tmp_path / name])


@pytest.mark.parametrize(
    ("value", "text"),
    NUMBERS.items(),
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text
