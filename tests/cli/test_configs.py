"""The packaged configurations: each instantiates, holds the paper's values, and follows overrides."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.command_line import TINY, call_tql, make_model, parse_fit
from tests.marks import slow_after
from tests.toy import fit
from tql_lightning.algorithms.tql import TQL
from tql_lightning.cli.configs import ConfigError, find_config, packaged_configs, refer_to_folder, resolve_configs
from tql_lightning.cli.model import chosen_model
from tql_lightning.data.sources.ogbench import known_domains
from tql_lightning.nn.attention import EntropyAttention
from tql_lightning.nn.temperature import AttentionTemperature

PACKAGED = sorted(packaged_configs())
PLAIN = [name for name in PACKAGED if not name.startswith(("size/", "variant/", "method/"))]
PAPER = {  # observation size, targets of both layers, alpha_BC
    "cube-double": (37, (3.0, 2.5), 300.0),
    "cube-triple": (46, (3.5, 3.0), 300.0),
    "scene": (40, (3.5, 3.0), 300.0),
    "puzzle-3x3": (55, (3.5, 3.0), 1000.0),
    "puzzle-4x4": (83, (3.5, 3.0), 1000.0),
}
PARAMETERS = {"size/0.4m": 419_714, "size/1m": 1_658_626, "size/7m": 6_594_050, "size/26m": 26_295_298}
DATA = "--data.dataset=tests.toy.toy_dataset"  # for files that name no dataset


@cache
def parsed(*arguments: str) -> dict[str, Any]:
    """`parse_fit`, once for all tests that only read it."""
    with pytest.MonkeyPatch.context() as patch:
        return parse_fit(patch, *arguments)


@pytest.mark.parametrize(
    "name",
    slow_after(10, [name for name in PLAIN if "/" not in name] + [name for name in PLAIN if "/" in name]),
)
def test_every_packaged_configuration_instantiates(name: str) -> None:
    """Sizes, variants and methods do below."""
    names_data = name == "quickstart" or name.startswith("ogbench/")
    configuration = parsed("--config", name, *(() if names_data else (DATA,)))
    with torch.device("meta"):
        model = make_model(configuration, 28, 5)
    assert model.critic.num_tokens == 34


@pytest.mark.parametrize(("domain", "values"), PAPER.items())
def test_domains_hold_the_papers_values(domain: str, values: tuple[int, tuple[float, float], float]) -> None:
    observation_dim, targets, alpha = values
    configuration = parsed("--config", f"ogbench/{domain}")
    assert configuration["data"]["dataset"]["init_args"]["domain"] == f"{domain}-play"
    model = make_model(configuration, observation_dim, 5)
    assert model.temperature is not None
    assert model.temperature.targets.tolist() == [[target, target] for target in targets]
    assert model.bc_coefficient == alpha
    optimisation = model.optimisation
    assert (model.discount, model.tau, optimisation.weight_decay) == (0.99, 0.005, 0.01)
    peaks = {name: optimisation.peak(name) for name in ("critic", "temperature", "actor")}
    assert peaks == {"critic": 1e-4, "temperature": 1e-4, "actor": 5e-4}
    assert (optimisation.lr_schedule, optimisation.warmup_updates) == ("warmup_cosine", 10_000)
    assert (configuration["data"]["batch_size"], configuration["trainer"]["max_steps"]) == (256, 1_000_000)
    assert (model.target_aggregation, model.normalize_q_loss, optimisation.gradient_clip_norm) == ("mean", False, None)


@pytest.mark.slow
def test_every_domain_is_one_of_ogbench() -> None:
    domains = [name for name in PACKAGED if name.startswith("ogbench/")]
    assert len(domains) == 15
    for name in domains:
        configuration = parsed("--config", name)
        assert configuration["data"]["dataset"]["init_args"]["domain"] in known_domains()


@pytest.mark.parametrize("name", [name for name in PACKAGED if name.startswith("size/")])
def test_sizes_have_the_releases_parameter_counts(name: str) -> None:
    configuration = parsed("--config", "ogbench/cube-double", "--config", name)
    with torch.device("meta"):
        model = make_model(configuration, 37, 5)
    assert sum(parameter.numel() for parameter in model.critic.parameters()) == PARAMETERS[name]


VARIANTS = [name for name in PACKAGED if name.startswith("variant/")]
BASE = ("--config", "ogbench/cube-double", "--config", "size/0.4m")


@pytest.fixture(scope="module")
def plain() -> TQL:
    """What variants are told from."""
    return make_model(parsed(*BASE), 37, 5)


@pytest.mark.parametrize("name", slow_after(4, VARIANTS))
def test_variants_change_what_they_name_and_keep_size_and_targets(name: str, plain: TQL) -> None:
    model = make_model(parsed(*BASE, "--config", name), 37, 5)

    def parts(model: TQL) -> list[object]:
        attentions = [module for module in model.modules() if isinstance(module, EntropyAttention)]
        functions = [(attention.score_transform, attention.weight_transform) for attention in attentions]
        return [[type(module) for module in model.modules()], functions]

    assert parts(model) != parts(plain)
    assert model.critic.tokenizer.position.shape == (42, 128)
    if isinstance(model.temperature, AttentionTemperature):
        assert model.temperature.targets.tolist() == [[3.0, 3.0], [2.5, 2.5]]
    else:
        assert name in ("variant/no_control", "variant/fixed_penalty")


@pytest.mark.parametrize("name", slow_after(4, VARIANTS))
def test_variants_train_in_bfloat16(name: str, tmp_path: Path) -> None:
    settings = deepcopy(parsed(*BASE, "--config", name)["model"])
    settings["critic"]["init_args"] |= {"hidden_dim": 16, "head_dim": 8}
    settings["policy"]["init_args"]["hidden_dims"] = [16]
    if "targets" in (settings["entropy_control"] or {}).get("init_args", {}):
        settings["entropy_control"]["init_args"]["targets"] = None  # cube-double's are for more tokens
    model = make_model({"model": settings}, 3, 1)
    trainer = fit(tmp_path, model, updates=2, updates_per_step=2, precision="bf16-mixed", limit_val_batches=0)
    assert trainer.global_step == 2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_interpolations_follow_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = parse_fit(
        monkeypatch,
        *("--config", "ogbench/cube-double", "--config", "size/26m"),
        *("--data.dataset.task=3", "--seed_everything=7", "--trainer.max_steps=500"),
    )
    folder = "runs/cube-double/task_3/tql-26m/seed_7"
    assert configuration["trainer"]["default_root_dir"] == folder
    assert [logger["init_args"]["save_dir"] for logger in configuration["trainer"]["logger"]] == [folder, folder]
    assert configuration["trainer"]["max_steps"] == 500
    assert configuration["data"]["seed"] == 7
    assert configuration["data"]["dataset"]["init_args"]["task"] == 3
    assert configuration["model"]["critic"]["init_args"]["hidden_dim"] == 1024


def test_later_files_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--config", "ogbench/scene", "--config", "size/26m", "--config", "size/1m")
    configuration = parse_fit(monkeypatch, *sizes, "--model.critic.num_layers=3", "--model.entropy_control=null")
    assert configuration["model"]["critic"]["init_args"]["hidden_dim"] == 256
    assert configuration["model"]["critic"]["init_args"]["num_layers"] == 3
    assert configuration["model"]["entropy_control"] is None


def test_of_two_callbacks_of_one_class_the_later_takes_the_others_place_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    added = ("LastCheckpoint", "--trainer.callbacks.dirpath=elsewhere", "--trainer.callbacks.every_n_updates=20")
    trained = call_tql(tmp_path, "fit", "--config=tiny.yaml", DATA, f"--trainer.callbacks+={added[0]}", *added[1:])
    assert trained.returncode == 0, trained.stderr
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["last.ckpt"]
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert caplog.text.count("of two LastCheckpoint the later is used, with its own settings alone") == 1


def test_a_configurations_progress_bar_can_be_taken_away(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    bar = ("--trainer.callbacks+=UpdateProgressBar", "--trainer.enable_progress_bar=false", "--trainer.max_steps=1")
    trained = call_tql(tmp_path, "fit", "--config=tiny.yaml", DATA, *bar)
    assert trained.returncode == 0, trained.stderr
    assert "updates/s" not in trained.stderr


def test_settings_that_a_callback_refuses_leave_no_run_behind(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    added = (
        "--trainer.callbacks+=LastCheckpoint",
        "--trainer.callbacks.every_n_updates=15",
        "--data.updates_per_step=10",
    )
    refused = call_tql(tmp_path, "fit", "--config=tiny.yaml", DATA, *added)
    assert "LastCheckpoint.every_n_updates: expected a multiple of data.updates_per_step=10" in refused.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("given", [("--trainer.default_root_dir=#1 run",), ("--trainer.default_root_dir", "#1 run")])
def test_a_folder_whose_name_starts_like_a_comment_is_that_folder(
    given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_fit(monkeypatch, "--config", "quickstart", *given)["trainer"]["default_root_dir"] == "./#1 run"


def test_environment_variables_reach_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQL_DATASETS", "elsewhere")
    configuration = parse_fit(monkeypatch, "--config", "quickstart")
    assert configuration["data"]["dataset"]["init_args"]["path"] == "elsewhere/Pendulum-v1.npz"


def test_a_file_of_the_users_comes_before_a_packaged_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart").endswith("conf/quickstart.yaml")
    Path("quickstart").write_text("seed_everything: 3\n")
    assert find_config("quickstart") == "quickstart"


def test_an_unknown_configuration_names_the_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"cube-dubble.*ogbench/cube-double"):
        find_config("ogbench/cube-dubble")


def test_defaults_come_first_and_only_where_they_belong() -> None:
    defaults, double = find_config("tql"), find_config("ogbench/cube-double")
    assert resolve_configs(["fit", "-c", "ogbench/cube-double"], {"fit"}) == [
        *("fit", "--config", defaults),
        "--trainer.default_root_dir=runs/cube-double/task_${..data.dataset.init_args.task}/tql/seed_${..seed_everything}",
        *("-c", double),
    ]
    assert resolve_configs(["collect", "x"], {"fit"}) == ["collect", "x"]


def test_a_datasets_name_may_stand_for_its_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--data.dataset=mine.npz"], ["--data.dataset", "mine.npz"]):
        dataset = parse_fit(monkeypatch, "--config", "quickstart", *words)["data"]["dataset"]
        assert dataset["class_path"].endswith("load_dataset")
        unset = dict.fromkeys(("env_id", "keys", "max_episode_steps"))
        assert dataset["init_args"] == {"name": "mine.npz", "validation_fraction": 0.0, **unset}
    named = parse_fit(
        monkeypatch, "--config", "ogbench/cube-single", "--data.dataset=cube-single-play-singletask-task4-v0"
    )
    assert named["data"]["dataset"]["init_args"] == {"domain": "cube-single-play", "task": 4, "dataset_dir": None}
    assert "/task_4/" in named["trainer"]["default_root_dir"]
    default = resolve_configs(["fit", "--data.dataset=cube-single-play-singletask-v0"], [])
    assert default[-2:] == ["--data.dataset.domain=cube-single-play-singletask-v0", "--data.dataset.task=null"]
    kept = [
        "fit",
        '--data.dataset={"class_path": "' + "mine." * 99 + 'my_data"}',
        "--data.dataset=mine.my_data",
        f"--data.dataset.path={tmp_path}",
    ]
    assert resolve_configs(kept, []) == kept


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"save_dir": "run"}, {"save_dir": "${trainer.default_root_dir}"}),
        ({"dirpath": "run/it's: a b"}, {"dirpath": "${trainer.default_root_dir}/it's: a b"}),
        ({"dirpath": "running/checkpoints"}, None),
        ({"dirpath": "other/run"}, None),
        ({"dirpath": None}, None),
        ({"default_root_dir": "run"}, None),
        ({"name": "run"}, None),
    ],
)
def test_what_is_written_into_a_runs_folder_is_said_by_a_reference_to_it_and_nothing_else(
    setting: dict[str, Any], said: dict[str, str] | None
) -> None:
    settings = {"callbacks": [{"init_args": setting}, 3]}
    assert refer_to_folder(settings, "run") == {"callbacks": [{"init_args": said or setting}, 3]}
    assert refer_to_folder(settings, None) == settings


@pytest.mark.parametrize("folder", ["null", "7", "it's", "a: folder", "runs of a folder " * 8 + "end"])
@pytest.mark.parametrize("below", ["", "/checkpoints", "/checkpoints in a folder of many words" * 3, "/a: b # c"])
def test_a_configuration_that_refers_to_its_folder_says_what_it_said(folder: str, below: str) -> None:
    said = {"trainer": {"default_root_dir": folder, "callbacks": [{"dirpath": folder + below, "other": None}]}}
    referring = yaml.safe_dump(refer_to_folder(said, folder), sort_keys=False)
    assert "${trainer.default_root_dir}" in referring
    assert OmegaConf.to_container(OmegaConf.create(referring), resolve=True) == said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config", "ogbench/cube-double"], "cube-double"),
        (["--config=quickstart"], "quickstart"),
        (["--data.dataset=antmaze-giant-navigate-singletask-task1-v0"], "antmaze-giant"),
        (["--data.dataset", "humanoidmaze-large-navigate-singletask-v0"], "humanoidmaze-large"),
    ],
)
@pytest.mark.parametrize("method", [["--config", "method/iql"], ["--config=method/iql"]])
def test_a_method_brings_along_what_its_paper_sets_for_the_problem(
    arguments: list[str], problem: str, method: list[str]
) -> None:
    packaged = packaged_configs()
    resolved = [argument.removeprefix("--config=") for argument in resolve_configs([*arguments, *method], [])]
    assert resolved[-2:] == [str(packaged["method/iql"]), str(packaged[f"method/iql/{problem}"])]


def test_a_method_brings_along_nothing_for_a_problem_that_its_paper_does_not_have() -> None:
    packaged = packaged_configs()
    resolved = resolve_configs(["--config", "ogbench/cube-triple", "--config", "method/iql"], [])
    assert resolved[-1] == str(packaged["method/iql"])


METHODS = sorted(name for name in PACKAGED if name.startswith("method/") and name.count("/") == 1)
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {  # arXiv 2502.02538, table of hyperparameters
    "fql": {"cube-single": (300.0, 0.99), "puzzle-4x4": (1000.0, 0.99)},
    "iql": {"cube-single": (1.0, 0.99), "cube-double": (0.3, 0.99), "puzzle-4x4": (3.0, 0.99)},
    "rebrac": {"cube-single": (1.0, 0.0, 0.99), "scene": (0.1, 0.01, 0.99), "puzzle-3x3": (0.3, 0.01, 0.99)},
}
COEFFICIENTS = {
    "fql": ("bc_coefficient", "discount"),
    "iql": ("alpha", "discount"),
    "rebrac": ("actor_bc_coefficient", "critic_bc_coefficient", "discount"),
}


def method_model(monkeypatch: pytest.MonkeyPatch, problem: str, method: str) -> Any:
    """The model of a method on a problem."""
    arguments = ["fit", "--config", problem, "--config", method]
    configuration = parse_fit(monkeypatch, *arguments[1:])
    chunk = configuration["data"]["action_chunk"]
    return make_model(configuration, 28, 5 * chunk, chosen_model(resolve_configs(arguments, ["fit"])))


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["quickstart", "ogbench/cube-double"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_with_the_problems(method: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = method_model(monkeypatch, problem, method)
    if problem == "quickstart" and f"{method}/quickstart" in PACKAGED:
        assert model.optimisation.learning_rate == 2e-3


@pytest.mark.parametrize(
    ("method", "problem"), [(method, problem) for method, problems in PUBLISHED.items() for problem in problems]
)
def test_methods_hold_the_published_values(method: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = method_model(monkeypatch, f"ogbench/{problem}", f"method/{method}")
    assert tuple(getattr(model, name) for name in COEFFICIENTS[method]) == PUBLISHED[method][problem]
    width = 256 if method == "iql" else 512  # on manipulation
    assert [layer.out_features for layer in model.critic.members[0].linear_layers] == [width] * 4 + [1]
    assert (model.temperature, model.tau, model.optimisation.weight_decay) == (None, 0.005, 0.0)


@pytest.mark.parametrize("method", ["iql.IQL", "rebrac.ReBRAC"])
def test_the_documented_file_puts_a_controlled_transformer_into_other_methods(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Critic, entropy control and classification are settings of a method, not code."""
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (documented,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(documented.replace("iql.IQL", method))
    model = method_model(monkeypatch, "quickstart", str(tmp_path / "mine.yaml"))
    names = [type(part).__name__ for part in (model, model.critic, model.temperature, model.td_loss)]
    assert names == [method.partition(".")[2], "TransformerCritic", "AttentionTemperature", "HLGauss"]
