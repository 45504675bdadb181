"""Our own commands: they parse, call the module that does the work, and print the result."""

from __future__ import annotations

from functools import partial
from json import dumps
from pathlib import Path

from tql_lightning.cli.data_commands import collect_command, convert_command, inspect_command
from tql_lightning.cli.parsers import CertifiedOutput, Command, Engine, ReportFormat, Shell
from tql_lightning.export.policy_folder import METADATA_FILE, ExportFormat
from tql_lightning.report.protocol import Protocol
from tql_lightning.run.checkpoint_file import last_of, require_checkpoint_file


def quickstart(seeds: list[int] | None = None, output: str = "runs/quickstart", parallel: int | None = None) -> None:
    """Learns to swing up a pendulum from bad data: collects, trains, evaluates and prints a table.

    Args:
        seeds: Seeds, one run each; default 0, 1 and 2.
        output: Folder for the runs and result.json; an earlier quickstart in it is replaced.
        parallel: Number of runs at once; default: two, or one on a single core.
    """
    from tql_lightning.cli.quickstart import run_quickstart

    run_quickstart([0, 1, 2] if seeds is None else seeds, Path(output), parallel)


def benchmark(
    suite: str,
    methods: list[str] | None = None,
    tasks: list[str] | None = None,
    sizes: list[str] | None = None,
    seeds: list[int] | None = None,
    set: list[str] | None = None,  # noqa: A002  (the option's name)
    output: str | None = None,
    engine: Engine = "ray",
    cpus: float = 1.0,
    gpus: float = 0.0,
    address: str | None = None,
    retries: int = 3,
    slurm: list[str] | None = None,
    search: list[str] | None = None,
    trials: int = 20,
    search_seeds: int = 3,
    dry_run: bool = False,
    commands: bool = False,
) -> int:
    """Runs a suite of tasks, methods and seeds, and ends in the table; see docs/benchmark.md.

    The same command continues what was stopped or killed, and repeats no finished run. The exit code is 1 where a run
    has not finished.

    Args:
        suite: "quickstart", "laptop", "ogbench-tql", "ogbench-fql", or a suite's YAML file.
        methods: Methods of the suite, or any of "method/" and "variant/" by name; default: the suite's.
        tasks: Domains ("cube-double") or tasks ("cube-double/task_1"); default: the suite's.
        sizes: Sizes of the critic ("26m") for the methods that have sizes; default: the suite's.
        seeds: Seeds, one run each; default: the suite's.
        set: Settings of every run, such as model.discount=0.995; they are part of the folder's name.
        output: Folder for the runs; default: runs/benchmark/SUITE.
        engine: "ray" trains as many runs at once as there are resources, on this machine or a cluster; needs
            pip install tql-lightning[cluster]. "slurm" submits an array job. "serial" trains one run after the other.
        cpus: Cores of a run.
        gpus: GPUs of a run; 0.25 lets four runs share one.
        address: Address of a Ray cluster, "auto" for this machine's; default: one that starts with the command.
        retries: How often Ray starts a run again after its worker or node has ended.
        slurm: Options of sbatch for --engine slurm, such as time=24:00:00 partition=gpu.
        search: Ranges of settings for Ray Tune with Optuna, such as "model.bc_coefficient=loguniform(1,1000)"; also
            uniform(a,b), randint(a,b) and choice(a,b,c). Of one method; the same command continues.
        trials: Number of trials of a search.
        search_seeds: Seeds of each trial: 0 to N - 1.
        dry_run: Print the plan with an estimate of its hours, and run nothing.
        commands: Print one command of tql fit for each run, and run nothing.
    """
    from tql_lightning.benchmark.plan import Choice
    from tql_lightning.benchmark.ray_engine import Resources
    from tql_lightning.cli import benchmark as benchmarks

    resources = Resources(gpus, address, retries)
    numbers = {"retries": (retries, 0), "trials": (trials, 1), "search_seeds": (search_seeds, 1)}
    given = [name for name, value in (("search", search), ("address", address), ("slurm", slurm)) if value is not None]
    benchmarks.check_options(engine, cpus, resources, numbers, given)
    seeds = list(range(search_seeds)) if search and seeds is None else seeds
    chosen = Choice(tasks, methods, sizes, seeds, benchmarks.key_values(set, "set"))
    found, runs = benchmarks.plan_suite(suite, chosen)
    space = benchmarks.search_space(runs, search) if search else {}
    folder = Path(output or f"runs/benchmark/{found.name}")
    if commands and search:
        raise ValueError(
            "commands: expected none with --search, whose settings are chosen while it runs; leave out --search, and "
            "give a trial's settings with --set, such as --set model.bc_coefficient=10"
        )
    if commands:
        print("\n".join(run.line(folder) for run in runs))
        return 0
    if dry_run:
        benchmarks.print_plan(found, runs, folder, trials if search else 1)
        return 0
    options = benchmarks.key_values(slurm, "slurm")
    if search:
        return 1 if benchmarks.search_suite(found, runs, folder, space, trials, cpus, resources) else 0
    return 1 if benchmarks.run_suite(found, runs, folder, engine, cpus, resources, options) else 0


def evaluate(
    checkpoints: list[str],
    episodes: int = 50,
    seed: int = 0,
    extraction: str | None = None,
    sigma: float | None = None,
    smoothing_samples: int = 4_000,
    env: str | None = None,
    num_envs: int = 10,
    parallel: bool = False,
    json: str | None = None,
    video: str | None = None,
    video_episodes: int = 3,
    max_episode_steps: int | None = None,
) -> None:
    """Plays evaluation episodes with the policies of checkpoints and prints a table with 95 % intervals.

    Args:
        checkpoints: One or more .ckpt files.
        episodes: Number of episodes for each checkpoint.
        seed: Seed of the episodes and their noise, the same for every checkpoint.
        extraction: How the model chooses actions, where it knows several ways (TQL: "fql", "best_of_n"
            or "behaviour_flow"; "implicit" acts as "best_of_n"); default: the model's own. "behaviour_flow" is recorded
            in the run's folder, as behaviour cloning for its reports. "smoothed" acts by the centre of the model's own
            actions under noise on the observation (docs/robustness.md).
        sigma: For "smoothed": standard deviation of that noise, in the units of the observations.
        smoothing_samples: For "smoothed": noisy observations of one decision.
        env: Gymnasium id of the environment; default: the dataset's.
        num_envs: Number of environments stepped together; the result does not depend on it.
        parallel: Run each environment in its own process; useful for slow environments.
        json: File for the figures, a list with one entry per checkpoint.
        video: Folder for MP4 videos of the first episodes; a run's own is RUN/videos. Needs
            pip install tql-lightning[video], and without a display EGL or OSMesa (MUJOCO_GL).
        video_episodes: Number of episodes to film.
        max_episode_steps: Time limit of an episode; default: the one that the environment is registered with.
    """
    from tql_lightning.system.files import require_writable

    sizes = {"episodes": episodes, "num_envs": num_envs, "video_episodes": video_episodes}
    for name, value in (sizes | {"smoothing_samples": smoothing_samples}).items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, found {value}")
    if json:
        require_writable(Path(json))
    if video:
        from tql_lightning.evaluation.videos import require_video

        require_video()
    for checkpoint in checkpoints:
        require_checkpoint_file(Path(checkpoint))
    from tql_lightning.cli.evaluate import evaluate_all
    from tql_lightning.evaluation.checkpoint import evaluate_checkpoint

    play = partial(
        evaluate_checkpoint,
        episodes=episodes,
        seed=seed,
        extraction=extraction,
        env_id=env,
        num_envs=num_envs,
        parallel=parallel,
        video_folder=Path(video) if video else None,
        video_episodes=min(video_episodes, episodes),
        smoothing=None if sigma is None else (sigma, smoothing_samples),
        max_episode_steps=max_episode_steps,
    )
    evaluate_all(checkpoints, play, json, as_in_training=env is None and max_episode_steps is None)


def export(
    checkpoint: str,
    format: ExportFormat = "onnx",  # noqa: A002  (the option's name)
    output: str = "exported",
    extraction: str | None = None,
    data: str | None = None,
) -> None:
    """Writes a checkpoint's policy for use without Lightning, compared with the checkpoint; see docs/export.md.

    Args:
        checkpoint: A .ckpt file.
        output: Folder to create; it must not exist, or be empty.
        format: "onnx" (for any ONNX runtime) or "torch" (weights for `tql_lightning.Policy`).
        extraction: How the model chooses actions, where it knows several ways (TQL: "fql", "best_of_n"
            or "behaviour_flow"; "implicit" acts as "best_of_n"); default: the model's own.
        data: Dataset, as of `tql data inspect`, at whose observations actions are compared; default: observations of
            random actions in the checkpoint's environment.
    """
    require_checkpoint_file(Path(checkpoint))
    from tql_lightning.export.comparison import BATCH_SIZES, TOLERANCE
    from tql_lightning.export.writer import export_checkpoint

    exported = export_checkpoint(Path(checkpoint), Path(output), format, extraction, data)
    checked = exported.metadata["verification"]
    sizes = " and ".join(str(size) for size in BATCH_SIZES)
    print(f"wrote {exported.folder}: {', '.join(sorted(path.name for path in exported.folder.iterdir()))}")
    print(
        f"actions equal the checkpoint's to {exported.largest_difference:.1e} (at most {TOLERANCE:g} allowed) on "
        f"{checked['rows']:,} observations ({checked['observations']}), in batches of {sizes}"
    )
    print(f'use: from tql_lightning import Policy; Policy.load("{exported.folder}").act(observation)')


def certify(
    target: str,
    sigma: list[float] | None = None,
    epsilon: list[float] | None = None,
    states: int = 20,
    output: CertifiedOutput = "action",
    extraction: str | None = None,
    data: str | None = None,
    samples: int = 5_000,
    certificate_samples: int = 10_000,
    candidates: int | None = None,
    seed: int = 0,
    json: str | None = None,
) -> None:
    """Certifies how far a smoothed policy's actions can move when an observation is moved; see docs/robustness.md.

    Args:
        target: Folder of a run (its last checkpoint), a .ckpt file, or a folder that `tql export` wrote.
        sigma: Standard deviations of the smoothing noise, in the units of the observations; default: 0.1 0.2.
        epsilon: Euclidean lengths of the move of an observation, in the same units; default: 0.05 0.1 0.2. At most
            twice sigma can be certified with the default numbers of samples.
        states: Number of states of the dataset.
        output: "action", or "q": the values of all heads at the policy's action, which is held fixed.
        extraction: "fql", "best_of_n" or "behaviour_flow"; default: the model's own.
        data: Name of the dataset, as `tql data inspect` takes it; default: the run's.
        samples: Number of samples that find the centre, and of others that test it.
        certificate_samples: Number of samples whose quantile is the bound.
        candidates: Number of samples among which the centre is chosen; default: all.
        seed: Seed of states and noise.
        json: File to write the figures to as well, with every state's bound.
    """
    if not (Path(target) / METADATA_FILE).is_file():
        require_checkpoint_file(last_of(Path(target)))
    from tql_lightning.cli.certify import as_json, certify_target
    from tql_lightning.cli.certify import table as certificate_table
    from tql_lightning.evaluation.smoothing import Smoothing
    from tql_lightning.system.files import require_writable, write_text_whole

    if json:
        require_writable(Path(json))
    smoothings = [
        Smoothing(each, samples, certificate_samples, candidates=candidates)
        for each in ([0.1, 0.2] if sigma is None else sigma)
    ]
    epsilons = [0.05, 0.1, 0.2] if epsilon is None else epsilon
    found, rows = certify_target(Path(target), smoothings, epsilons, states, output, extraction, data, seed)
    print(certificate_table(found, rows, smoothings[0]))
    if json:
        write_text_whole(Path(json), dumps(as_json(found, rows, smoothings[0], seed), indent=2) + "\n")
        print(f"wrote {json}")


def report(
    runs: list[str],
    format: ReportFormat = "html",  # noqa: A002  (the option's name)
    output: str | None = None,
    protocol: Protocol | None = None,
    media_mb: float = 30.0,
) -> None:
    """Sums up runs: one self-contained HTML page, or the table of scores; see docs/report.md.

    Args:
        runs: Folders of runs, or folders that contain runs. Runs of one configuration are seeds of one method. For the
            table also one folder of `tql benchmark`, or one summary that --format json wrote.
        format: "html" for the page with curves and pictures; "md", "csv", "latex" or "json" for the table alone.
        output: File to write; default: report.html, or the table on the screen.
        protocol: Score of a run in the table: the mean of the "last_three" evaluations, the "last", or the "best",
            which is marked as chosen by its own score; default: the suite's, else "last_three".
        media_mb: Largest size of all pictures and videos in the page, in megabytes.
    """
    from tql_lightning.benchmark.summary import is_benchmark, summary_of
    from tql_lightning.report.table_formats import render_table, table_html
    from tql_lightning.system.files import require_writable, write_text_whole

    folders = [Path(run) for run in runs]
    if format == "html":
        from tql_lightning.report.methods import choose_score
        from tql_lightning.report.page import write_report

        written = write_report(
            folders,
            Path(output or "report.html"),
            media_mb,
            lambda runs: (
                table_html(summary_of(folders, protocol)) if is_benchmark(folders) or choose_score(runs) else ""
            ),
        )
        print(f"wrote {written} ({written.stat().st_size / 1e6:.1f} MB)")
        return
    if output:
        require_writable(Path(output))
    text = render_table(summary_of(folders, protocol), format)
    if output:
        write_text_whole(Path(output), text)
    print(f"wrote {output}" if output else text, end="\n" if output else "")


def completion(shell: Shell) -> None:
    """Prints a script that completes commands and options in a shell; see docs/command_line.md.

    Args:
        shell: "bash", "zsh" or "tcsh".
    """
    from tql_lightning.cli.completion import completion_script

    print(completion_script(shell, COMMANDS, GROUPS))


GROUPS = {"data": "Inspects and converts datasets."}
COMMANDS: dict[str, Command | dict[str, Command]] = {
    "benchmark": benchmark,
    "certify": certify,
    "collect": collect_command,
    "completion": completion,
    "data": {"inspect": inspect_command, "convert": convert_command},
    "evaluate": evaluate,
    "export": export,
    "quickstart": quickstart,
    "report": report,
}
