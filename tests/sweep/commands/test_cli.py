"""The command line as a user meets it: one clear error, no traceback, and the store left readable."""

import dataclasses
import errno
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import typer
from aiohttp import ClientPayloadError
from typer.testing import CliRunner, Result

from analysis.study.frame import IncompleteSweepError
from pipelines.data.sources import nli_sources_config
from pipelines.errors import UserError
from sweep import cli
from sweep.commands.options import one_clear_error
from sweep.commands.results import write_report
from sweep.graph.records import Store, Study
from sweep.graph.spending import ON_DEMAND, SPOT, Held, RunSpending, write_run
from sweep.index.kept_database import KeptDatabase
from sweep.plan.replaced import replaced_line
from sweep.plan.throughputs import read_table
from sweep.run.budget import Prices, look_at
from sweep.run.session import RayOptions, ray_session
from sweep.run.study_run import Result as StudyResult
from sweep.run.study_run import manifest
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded, load_experiment
from tests.analysis.fake_store import FakeStudy

ROOT = Path(__file__).parents[3]
DATA = (ROOT / ".." / "shared" / "data").resolve()


def blindsweep(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def assert_one_error(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stderr.count("Error: ") == 1
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["plan", "demo"]])
def test_it_starts_without_anything_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from sweep.app import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print(sorted({'ray', 'torch', 'mlflow', 'vllm', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.endswith("[]\n"), done.stdout


def test_it_tells_its_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = blindsweep("--version")
    assert (result.exit_code, result.stdout) == (0, f"blindsweep {project['version']}\n")


COMMANDS = ("run", "plan", "status", "report", "verdicts", "power", "export", "publish", "ui", "reindex", "experiments")


def test_a_store_that_breaks_off_is_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    @one_clear_error
    def command() -> None:
        raise ClientPayloadError("Response payload is not completed")

    with pytest.raises(typer.Exit):
        command()
    said = "the store's server does not answer (Response payload is not completed); check the address and the network"
    assert capsys.readouterr().err == f"Error: {said}\n"


def test_a_database_of_a_remote_store_that_cannot_be_worked_on_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    database = KeptDatabase("s3://bucket/mlflow.db", tmp_path / "file" / "mlflow.db")
    monkeypatch.setattr("sweep.run.tracking.kept_database", lambda *of: database)
    monkeypatch.setattr("sweep.run.study_run.run_study", lambda *of, **how: StudyResult(1, 1, 0, (), ()))
    monkeypatch.setattr("sweep.commands.run.answer_of", lambda *of: None)
    result = blindsweep("run", "demo", "--store", str(tmp_path / "store"), "--no-report")
    assert result.exit_code == 0 and "demo: 1 artifacts, 1 were there, 0 built" in result.stdout
    assert "Warning: what MLflow is told is not kept in the store: " in result.stderr
    assert "set XDG_CACHE_HOME to a folder that can" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert blindsweep(command, "--help").exit_code == 0


def test_each_example_in_a_command_s_help_has_a_line_of_its_own() -> None:
    """A help's indented lines are joined where what stands before them is a paragraph of one line: the margin is cut off."""
    groups = [(cli.app, []), *((group.typer_instance, [group.name]) for group in cli.app.registered_groups)]
    commands = [
        ([*names, command.name or command.callback.__name__], inspect.getdoc(command.callback) or "")
        for app, names in groups
        for command in app.registered_commands
    ]
    examples = {
        tuple(names): [line.strip() for line in text.splitlines() if line.startswith("    ")] for names, text in commands
    }
    assert sum(map(bool, examples.values())) > 10
    for names, lines in examples.items():
        shown = CliRunner().invoke(cli.app, [*names, "--help"], env={"COLUMNS": "200"}).output
        assert set(lines) <= {line.strip() for line in shown.splitlines()}, names


def test_data_fetch_has_help_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    assert blindsweep("data", "fetch", "--help").exit_code == 0
    result = blindsweep("data", "fetch", "--to", str(tmp_path / "data"), "--from", str(tmp_path / "none"))
    assert_one_error(result, f"--from {tmp_path}/none is not a folder")


def test_copies_of_a_part_of_multinli_are_fetched_and_marked(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("no MultiNLI and HANS here")
    result = blindsweep("data", "fetch", "--to", str(tmp_path), "--from", str(DATA))
    assert result.exit_code == 0, result.output
    assert "79,429 training rows; all of MultiNLI gives 391,722" in result.stdout
    assert "marked: partial MultiNLI: 80,180 of 392,702 labelled rows (79,429 for training)" in result.stdout
    official = {name: one["is_official"] for name, one in json.loads((tmp_path / "origin.json").read_text())["files"].items()}
    assert official["heuristics_evaluation_set.txt"] is True and official["multinli_1.0_train.jsonl"] is False
    # The folder is what a study on real data takes.
    assert nli_sources_config(str(tmp_path)) == nli_sources_config(str(DATA))


def test_challenge_sets_are_fetched_from_copies_and_named_for_the_study(tmp_path: Path) -> None:
    if not (DATA / "challenge").is_dir():
        pytest.skip("no challenge sets here")
    names = "mnli_hard,med,scone,neg_nli"
    result = blindsweep("data", "fetch", "--to", str(tmp_path), "--from", str(DATA), "--challenges", names)
    assert result.exit_code == 0, result.output
    assert "mnli_hard: 19,647 examples" in result.stdout and result.stdout.strip().endswith(f"-p challenges={names}")
    files = json.loads((tmp_path / "origin.json").read_text())["files"]
    assert len(files) == 4 + 16 and all(one["is_official"] for name, one in files.items() if name.startswith("challenge/"))
    assert nli_sources_config(str(tmp_path), names.split(",")) == nli_sources_config(str(DATA), names.split(","))


def test_plan_shows_what_a_change_rebuilds(tmp_path: Path, record_all: Callable) -> None:
    record_all(build_grid(load_experiment("demo").experiment), Store(tmp_path))
    manifest(load_experiment("demo"), build_grid(load_experiment("demo").experiment)).save(Store(tmp_path))
    assert "everything is built" in blindsweep("plan", "demo", "--store", str(tmp_path)).stdout
    file = tmp_path / "study.py"
    file.write_text(
        "import dataclasses\nfrom sweep import Experiment\nfrom sweep.experiments import demo\n"
        "def study() -> Experiment:\n"
        "    one = demo()\n"
        "    evaluation = dataclasses.replace(one.evaluation, dtype='bfloat16')\n"
        "    return dataclasses.replace(one, evaluation=evaluation)\n"
    )
    shown = blindsweep("run", str(file), "--store", str(tmp_path), "--dry-run").stdout
    assert "24 of 70 to build" in shown
    assert "  evaluation.dtype 'float32' → 'bfloat16': 24 evaluation\n" in shown


def test_a_run_that_takes_another_ones_name_says_what_it_replaces(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = load_experiment("demo", ["seeds=0,1,2"])
    manifest(before, build_grid(before.experiment)).save(store)

    def planned(*arguments: str) -> str:
        return blindsweep("plan", "demo", "--store", str(tmp_path), *arguments).stdout

    shown = planned("-p", "seeds=0,1")
    assert "demo was last run with other parameters (seeds 0,1,2 → 0,1), and this run takes its name: " in shown
    assert "of its 37 artifacts are not part of it. They are kept in the store" in shown
    assert shown.strip().endswith("--name NAME; to go back, run it with -p seeds=0,1,2")
    # What grows replaces nothing, and neither does a study of another name.
    assert "takes its name" not in planned("-p", "seeds=0,1,2,3")
    other = planned("-p", "seeds=0,1", "--name", "two_seeds")
    assert other.startswith("two_seeds: ") and "takes its name" not in other
    assert_one_error(blindsweep("plan", "demo", "--name", "a/b"), "name='a/b'")


def test_a_report_of_other_parameters_is_kept_beside_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0,))
    write_report(Store(study.write()), "tiny", None, partial=False)
    page = tmp_path / "reports" / "tiny" / "report.html"
    first = page.read_text()
    write_report(Store(study.write()), "tiny", None, partial=False)
    assert "kept: " not in capsys.readouterr().out and [path.name for path in page.parents[1].iterdir()] == ["tiny"]
    id_of_first = json.loads((page.parent / "study.json").read_text())["id"]
    study.add_grid((0,), (60,), (1,))
    study.parameters["seeds"] = [0, 1]
    write_report(Store(study.write()), "tiny", None, partial=False)
    kept = page.parents[1] / f"tiny@{id_of_first}" / "report.html"
    assert f"kept: the report of other parameters is {kept} now" in capsys.readouterr().out
    assert kept.read_text() == first != page.read_text()
    assert json.loads((page.parent / "study.json").read_text())["parameters"]["seeds"] == [0, 1]
    # Of a report that cannot be written nothing is moved.
    study.add_evaluation(0, "original", 60, 2, built=False)
    with pytest.raises(IncompleteSweepError):
        write_report(Store(study.write()), "tiny", None, partial=False)
    assert page.is_file() and len(list(page.parents[1].iterdir())) == 2


def test_a_report_for_a_folder_replaces_nothing_but_itself(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "store")
    study.add_grid((0,), (60,), (0,))
    store, output = Store(study.write()), tmp_path / "out"
    write_report(store, "tiny", output, partial=False)
    first = (output / "report.html").read_text()
    write_report(store, "tiny", output, partial=False)
    study.add_grid((0,), (60,), (1,))
    study.write()
    with pytest.raises(UserError, match="out holds a report of tiny with other artifacts; name a folder that is not there"):
        write_report(store, "tiny", output, partial=False)
    assert (output / "report.html").read_text() == first
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "frame.csv").write_text("mine")
    with pytest.raises(UserError, match="full is not empty"):
        write_report(store, "tiny", tmp_path / "full", partial=False)
    with pytest.raises(UserError, match="is a file"):
        write_report(store, "tiny", tmp_path / "full" / "frame.csv", partial=False)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["frame.csv"]


def test_a_run_that_evaluated_nothing_writes_no_report_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_experiment("demo", ["seeds=0"])
    manifest(loaded, build_grid(loaded.experiment)).save(Store(tmp_path))
    failure = {"stage": "sources", "slug": "sources", "fingerprint": "0" * 64, "error": "it broke"}
    monkeypatch.setattr("sweep.run.study_run.run_study", lambda *_, **__: StudyResult(18, 0, 0, (failure,), ()))
    result = blindsweep("run", "demo", "-p", "seeds=0", "--store", str(tmp_path))
    assert "no report: no task model is evaluated yet" in result.stderr and result.exit_code == 1
    assert not (tmp_path / "reports").exists()


def test_the_end_of_a_run_says_what_there_is_and_what_is_amiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_experiment("demo", ["seeds=0"])
    manifest(loaded, build_grid(loaded.experiment)).save(Store(tmp_path))
    failures = (
        {"stage": "sources", "slug": "data", "fingerprint": "0" * 64, "error": "it broke", "log": "log.txt"},
        {"stage": "generator", "slug": "generator", "fingerprint": "1" * 64, "error": "blocked by sources/data"},
    )
    ended = StudyResult(18, 3, 13, failures, ("it is down",), num_losses=2, notes=("x was set aside",))
    monkeypatch.setattr("sweep.run.study_run.run_study", lambda *_, **__: ended)
    result = blindsweep("run", "demo", "-p", "seeds=0", "--store", str(tmp_path), "--tracking-uri", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "demo: 18 artifacts, 3 were there, 13 built; machines, processes or the store were lost 2 times under way",
        f"compare runs: blindsweep ui --store {tmp_path} --tracking-uri http://127.0.0.1:1",
    ]
    assert result.stderr.splitlines() == [
        "Warning: x was set aside",
        "Warning: MLflow has not everything (it is down); nothing else is affected: `blindsweep reindex` fills it in",
        "no report: no task model is evaluated yet",
        "Error: demo: 1 failed, 1 blocked by them; all others are complete",
        "  failed   sources/data: it broke",
        "           full traceback: log.txt",
        "  blocked by sources/data: 1 generator",
    ]


@pytest.mark.parametrize(
    ("hold", "error", "is_said"),
    [
        ("", UserError("a figure is missing"), False),
        ("a notice came", UserError("a figure is missing"), True),
        ("", OSError(errno.EROFS, "it is only read"), True),
    ],
)
def test_a_report_that_cannot_be_written_is_an_error_unless_the_study_is_not_whole_or_the_store_is_only_read(
    hold: str, error: Exception, is_said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sweep.run.study_run.run_study", lambda *_, **__: StudyResult(18, 0, 18, (), (), hold=hold))
    monkeypatch.setattr("sweep.commands.run._is_evaluated", lambda *_: True)
    monkeypatch.setattr("sweep.commands.run.write_report", write)
    result = blindsweep("run", "demo", "-p", "seeds=0", "--store", str(tmp_path))
    assert result.exit_code == (0 if is_said else 1)
    assert ("no report: " in result.stderr) is is_said and ("compare runs: " in result.stdout) is is_said


def test_a_piece_without_a_report_says_nothing_of_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.run.study_run.run_study", lambda *_, **__: StudyResult(18, 0, 18, (), ()))
    monkeypatch.setattr("sweep.commands.run.answer_of", lambda *_: "The answer.")
    words = ("run", "demo", "-p", "seeds=0,1", "-p", "generators=2", "--no-report", "--store", str(tmp_path))
    assert "The answer." in blindsweep(*words).stdout
    piece = blindsweep(*words, "--only", "shared,seed=0")
    assert piece.exit_code == 0 and "The answer." not in piece.stdout


def test_an_error_of_several_lines_keeps_them_on_the_terminal(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add_grid((0,), (60,), (0, 1), skip=((0, "original", 60, 1), (0, "synthetic", 60, 1)))
    study.write()
    lines = blindsweep("report", "tiny", "--store", str(tmp_path)).stderr.splitlines()
    assert lines[0] == "Error: study 'tiny' lacks 2 result(s):"
    assert lines[1] == "  starting_size=0, kind=original, size=60, seed=1: evaluation (not built)" and len(lines) == 4


@pytest.fixture
def gpu_study(tmp_path: Path) -> str:
    """The demo, on GPUs."""
    file = tmp_path / "study.py"
    file.write_text(
        "import dataclasses\nfrom sweep import Experiment, Resources\nfrom sweep.experiments import demo\n"
        "def study(seeds: tuple[int, ...] = (0,), generators: int = 1) -> Experiment:\n"
        "    stages = ('generator', 'synthetic_pool', 'starting_point', 'task_model', 'evaluation')\n"
        "    gpus = {stage: Resources(gpus_per_worker=1) for stage in stages}\n"
        "    return dataclasses.replace(demo(seeds=seeds, generators=generators), name='study', resources=gpus)\n"
    )
    return str(file)


def test_plan_says_what_a_study_costs(gpu_study: str, tmp_path: Path) -> None:
    shown = blindsweep("plan", gpu_study, "--store", str(tmp_path / "s"), "--price", "2.5", "--sources").stdout
    assert "GPU-hours" in shown and "wall time: " in shown and "estimates. h200 at $2.5 an hour" in shown
    assert "setup.generate of 6,738 M parameters: 68 s  measured" in shown
    done = blindsweep("plan", gpu_study, "--store", str(tmp_path / "s"), "--json", "--price", "2.5", "--max-gpus", "3")
    plan = json.loads(done.stdout)
    costs = plan["costs"]
    assert plan["stages"]["task_model"]["steps"] == 3
    assert costs["to_build"] == costs["in_all"]
    assert costs["to_build"]["on_demand"] == pytest.approx(2.5 * costs["to_build"]["gpu_hours"])
    assert [one["num_gpus"] for one in costs["schedules"]] == [1, 2, 3, 4, 8]
    by_stage = [stage["to_build"]["gpu_hours"] for stage in plan["stages"].values()]
    assert sum(by_stage) == pytest.approx(costs["to_build"]["gpu_hours"])
    assert not (tmp_path / "s").exists()
    assert_one_error(blindsweep("plan", gpu_study, "--gpu", "tpu"), "'tpu'", "h200, h100, a100")


def test_plan_says_when_seeds_are_whole_all_at_once_and_one_after_another(gpu_study: str, tmp_path: Path) -> None:
    words = ("plan", gpu_study, "-p", "seeds=0,1,2", "-p", "generators=3", "--max-gpus", "1", "--store", str(tmp_path / "s"))

    def ends(*options: str) -> list[float]:
        (schedule, *_) = json.loads(blindsweep(*words, "--json", *options).stdout)["costs"]["schedules"]
        assert schedule["seed_ends"].keys() == {"0", "1", "2"}
        return list(schedule["seed_ends"].values())

    at_once, in_turn = ends(), ends("--seeds-at-once", "1")
    assert in_turn == sorted(in_turn) and in_turn[0] < min(at_once) and in_turn[1] < sorted(at_once)[1]
    assert ends("--seeds-at-once", "3") == at_once
    assert "of 3 seeds the first is whole after " in blindsweep(*words).stdout
    refused = blindsweep(*words, "--seeds-at-once", "0")
    assert refused.exit_code == 2 and "--seeds-at-once" in refused.stderr


def test_a_run_builds_as_many_seeds_at_once_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(
        "sweep.run.study_run.run_study", lambda *given, **_: told.append(given[3]) or StudyResult(18, 18, 0, (), ())
    )
    for options in ((), ("--seeds-at-once", "2")):
        assert blindsweep("run", "demo", "--no-report", "--store", str(tmp_path), *options).exit_code == 0
    assert [options.seeds_at_once for options in told] == [None, 2]


def test_a_plan_for_a_gpu_that_was_not_measured_says_so(gpu_study: str, tmp_path: Path) -> None:
    options = ("plan", gpu_study, "--store", str(tmp_path / "s"), "--gpu", "l40s")
    note = "not measured on l40s, reckoned from the makers' data sheets: "
    shown = blindsweep(*options, "--sources").stdout
    assert "l40s at $2.62 an hour on demand, no price spot" in shown
    # Once under the estimates, once beside the rates of --sources.
    assert shown.count(note) == 2
    assert (
        "l40s: $2.62 an hour on demand, no price spot, 362 TFLOP/s, 0.864 TB/s, 48 GB; nothing was measured on it  published"
        in shown
    )
    costs = json.loads(blindsweep(*options, "--json").stdout)["costs"]
    assert costs["unmeasured"].startswith(note) and "L40S" in costs["gpu_source"]
    assert {rate["measured_on"] for rate in costs["rates"]} == {"h200"}
    assert costs["price"] == 2.62 and "AWS g6e.12xlarge" in costs["price_source"]


def test_without_a_price_hours_are_shown_and_no_money(gpu_study: str, tmp_path: Path) -> None:
    options = ("plan", gpu_study, "--store", str(tmp_path / "s"), "--gpu", "rtx4090")
    shown = blindsweep(*options).stdout
    assert "rtx4090 at no price an hour on demand, no price spot" in shown and "without a price no cost" in shown
    costs = json.loads(blindsweep(*options, "--json").stdout)["costs"]
    assert costs["price"] is None and costs["to_build"]["on_demand"] is None and costs["to_build"]["gpu_hours"] > 0


def test_a_model_that_cannot_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    settings = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008}
    (tmp_path / "llama" / "config.json").write_text(json.dumps({**settings, "vocab_size": 32_000}))
    file = tmp_path / "study.py"
    file.write_text(
        "import dataclasses\nfrom sweep import Experiment, Resources\nfrom sweep.experiments import demo\n"
        "from pipelines.finetune.base_model import PretrainedModelConfig\nfrom pipelines.identity import FileHash\n"
        "def study() -> Experiment:\n"
        "    stages = ('generator', 'synthetic_pool', 'starting_point', 'task_model', 'evaluation')\n"
        "    gpus = {stage: Resources(gpus_per_worker=1) for stage in stages}\n"
        f"    model = PretrainedModelConfig((FileHash('model.safetensors', '0' * 64),), path='{tmp_path / 'llama'}')\n"
        "    return dataclasses.replace(demo(seeds=(0,)), name='study', base_model=model, resources=gpus)\n"
    )
    options = (str(file), "--store", str(tmp_path / "s"), "--gpu", "h100")
    # All weights are trained: 2 + 2 + 12 bytes of each of 6.7 billion.
    line = "generator/generator needs at least 100.4 GiB on a worker's GPU"
    shown = blindsweep("plan", *options).stdout
    assert f"does not fit: {line}" in shown and "the h100 has 80 GB; `run` refuses it" in shown
    assert line in json.loads(blindsweep("plan", *options, "--json").stdout)["costs"]["does_not_fit"]
    assert_one_error(blindsweep("run", *options), line, "the h100 has 80 GB", "--gpu")
    assert not (tmp_path / "s").exists()
    shown = blindsweep("plan", *options[:-1], "h200").stdout
    assert "memory: at least 100.4 GiB of 141 GB on a GPU for generator/generator, without activations" in shown


def test_a_table_of_ones_own(gpu_study: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    text = '[[gpu]]\nname = "mine"\nbf16_tflops = 100\nmemory_tb_per_s = 1\nprice = 2\nsource = "our own"\n'
    file.write_text(text)
    options = (gpu_study, "--store", str(tmp_path / "s"), "--gpu", "mine", "--throughputs", str(file))
    shown = blindsweep("plan", *options, "--sources").stdout
    assert "mine at $2 an hour on demand" in shown and "nothing was measured on it  our own" in shown
    assert_one_error(blindsweep("run", *options, "--budget", "0"), "of mine at $2", code=75)
    file.write_text(text.replace("100", "-1"))
    for command in ("plan", "run"):
        assert_one_error(blindsweep(command, *options), str(file), "bf16_tflops=-1", "above 0")


def test_on_a_cluster_the_gpu_is_that_of_its_nodes(gpu_study: str, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_gpus": 0, "include_dashboard": False})
    options = ("run", gpu_study, "--store", str(tmp_path / "s"), "--address", cluster.address, "--budget", "0", "--price", "2")
    try:
        assert_one_error(blindsweep(*options, "--gpu", "l4"), "GPU-hours of l4 at $2", code=75)
        cluster.add_node(**node, num_gpus=4, resources={"accelerator_type:L40S": 1}, labels={"market": "spot"})
        cluster.wait_for_nodes()
        assert_one_error(blindsweep(*options), "GPU-hours of l40s at $2", "not measured on l40s", "over the budget", code=75)
        # Having been joined and left for the plan, it can be joined for the run.
        with ray_session(RayOptions(cluster.address), []) as capacity:
            assert capacity.gpus == 4
            # What is held is seen by the label that cluster.yaml sets.
            prices = Prices(read_table(), None)
            assert look_at(RayOptions(cluster.address), capacity, prices)() == {("l40s", SPOT): 4}
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    ("there", "parts", "code"),
    [
        (set(), ("--budget cannot be checked", "no node of the cluster says", "--gpu"), 1),
        ({"L40S", "T4"}, ("several kinds of GPU (L40S, T4)", "--gpu"), 1),
        ({"L40S"}, ("GPU-hours of l40s at $2",), 75),
    ],
)
def test_a_budget_needs_nodes_of_one_kind_of_gpu(
    gpu_study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: set[str], parts: tuple[str, ...], code: int
) -> None:
    monkeypatch.setattr("sweep.run.session.accelerator_types", lambda options: there)
    options = ("run", gpu_study, "--store", str(tmp_path / "s"), "--address", "head:1", "--budget", "0", "--price", "2")
    assert_one_error(blindsweep(*options), *parts, code=code)
    assert ("l40s at $2 an hour" in blindsweep(*options, "--dry-run").stdout) == (code == 75)


def test_on_one_machine_the_gpu_is_its_own(gpu_study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.thirdparty import pynvml

    driver = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetName": lambda handle: "NVIDIA GeForce RTX 4090",
    }
    for name, answer in driver.items():
        monkeypatch.setattr(pynvml, name, answer)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA GeForce RTX 4090'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    options = ("run", gpu_study, "--store", str(tmp_path / "s"), "--budget", "0", "--price", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "GPU-hours of h200 at $2" in blindsweep(*options).stderr
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert_one_error(blindsweep(*options), "GPU-hours of rtx4090 at $2", "not measured on rtx4090", code=75)
    assert "GPU-hours of l4 at $2" in blindsweep(*options, "--gpu", "l4").stderr


def test_plan_of_a_study_without_gpus_leaves_costs_out(tmp_path: Path) -> None:
    assert "no costs: no step asks for a GPU" in blindsweep("plan", "demo", "--store", str(tmp_path)).stdout
    assert json.loads(blindsweep("plan", "demo", "--store", str(tmp_path), "--json").stdout)["costs"] is None


def test_a_run_over_its_budget_does_not_start(gpu_study: str, tmp_path: Path) -> None:
    result = blindsweep("run", gpu_study, "--store", str(tmp_path / "s"), "--gpu", "h200", "--budget", "0.5")
    assert_one_error(result, "missing of study would cost about $", "over the budget of $0.50", "raise --budget", code=75)
    result = blindsweep("run", "demo", "--store", str(tmp_path / "s"), "--budget", "500")
    assert_one_error(result, "--budget cannot be checked", "no step asks for a GPU")
    assert not (tmp_path / "s").exists()


def test_a_budget_is_of_the_whole_study_and_status_says_what_is_spent(
    gpu_study: str, tmp_path: Path, record_all: Callable
) -> None:
    store = Store(tmp_path / "s")
    options = ("run", gpu_study, "--store", store.uri, "--gpu", "h200", "--no-report", "--budget")
    asked = blindsweep(*options, "0").stderr
    (missing,) = re.findall(r"would cost about \$([\d.]+) ", asked)
    held = (Held("h200", ON_DEMAND, 3_600, 10.0), Held("h200", SPOT, 7_200, 4.0))
    write_run(store, "study", RunSpending("a", "2026", "2026", 18.0, held))
    # It is asked before what was spent is looked past: the missing part alone would be within.
    refused = blindsweep(*options, f"{float(missing) + 17.9}")
    assert_one_error(refused, "$18.00 ($10.00 on demand, $8.00 spot, 3.00 GPU-hours) spent on it already", code=75)
    # Built, it costs nothing more, whatever is allowed.
    steps = build_grid(load_experiment(gpu_study).experiment)
    record_all(steps, store)
    record = store.read_record(steps[0].id)
    assert record is not None
    counts = {f"{name}/num_examples": 9 for name in ("train", "dev", "template_test", "template_probe")}
    store.write_record(dataclasses.replace(record, metrics=counts))
    done = blindsweep(*options, "0")
    assert done.exit_code == 0, done.output
    shown = blindsweep("status", "study", "--store", store.uri).stdout
    assert "spent: $18.00 ($10.00 on demand, $8.00 spot, 3.00 GPU-hours) of $18.00, the last run's budget" in shown
    values = json.loads(blindsweep("status", "--store", store.uri, "--json").stdout)["study"]
    assert values["built"] == values["artifacts"] == len(steps)
    assert values["spent"]["dollars"] == 18 and values["spent"]["by_market"] == {ON_DEMAND: 10, SPOT: 8}
    (tmp_path / "s" / "spend" / "study" / "b.json").write_text("{")
    shown = blindsweep("status", "study", "--store", store.uri).stdout
    assert f"{len(steps)} of {len(steps)} artifacts built" in shown and "b.json is not a readable account" in shown


def test_a_plan_takes_the_number_of_gpus_by_the_name_that_a_run_has(gpu_study: str, tmp_path: Path) -> None:
    def gpus(option: str) -> list[float]:
        done = blindsweep("plan", gpu_study, "--store", str(tmp_path / "s"), "--json", option, "3")
        return [schedule["num_gpus"] for schedule in json.loads(done.stdout)["costs"]["schedules"]]

    assert gpus("--max-gpus") == gpus("--num-gpus") == [1, 2, 3, 4, 8]
    shown = blindsweep("plan", "--help").stdout
    assert "--max-gpus" in shown and "--num-gpus" not in shown


def test_no_color_leaves_no_code_in_help_and_tables(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sweep.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    for arguments in (["plan", "demo", "--store", str(tmp_path)], ["plan", "--help"]):
        for no_color, has_codes in ({}, True), ({"NO_COLOR": "1"}, False):
            done = subprocess.run(
                [*command, *arguments], env=environment | no_color, capture_output=True, text=True, check=True, cwd=tmp_path
            )
            assert ("\x1b[" in done.stdout) == has_codes


def test_printed_commands_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "a store; of mine")
    Study("tiny", "A title", {}, ()).save(Store(root))
    two = [SimpleNamespace(record=SimpleNamespace(slug=slug), value=1.0) for slug in ("one", "two")]
    monkeypatch.setattr("sweep.commands.results.origins_of", lambda *_: two)
    shown = blindsweep("explain", "tiny", "hans/$accuracy", "--store", root).stdout.splitlines()[-1]
    words = shlex.split(shown.removeprefix("one of them in full: "))
    assert words == ["blindsweep", "explain", "tiny", "hans/$accuracy", "--cell", "one", "--store", root]
    before = Loaded(load_experiment("demo").experiment, {"data": "my data"})
    after = Loaded(load_experiment("demo", ["training_sizes=300"]).experiment, {"data": "other"})
    earlier = manifest(before, build_grid(before.experiment))
    assert replaced_line(after, build_grid(after.experiment), earlier).endswith("run it with -p 'data=my data'")


def test_experiments_show_choices_and_no_types_of_pythons_own() -> None:
    shown = blindsweep("experiments").stdout
    assert "-p training=...  two_steps|joint, default 'two_steps'" in shown
    assert "-p heuristic_share=...  float | None, default None" in shown
    assert "typing." not in shown and "Literal" not in shown


def test_experiments_are_listed_with_their_parameters() -> None:
    shown = blindsweep("experiments").stdout
    assert "demo: " in shown and "-p seeds=...  tuple[int, ...], default (0, 1, 2, 3, 4, 5)" in shown


def test_a_typo_in_the_experiment_file(tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text("from sweep.experiments import demo\ndef study(:\n")
    assert_one_error(blindsweep("run", str(file), "--store", str(tmp_path / "s")), "study.py:2: ")
    assert not (tmp_path / "s").exists()


def test_an_unknown_parameter(tmp_path: Path) -> None:
    result = blindsweep("run", "demo", "-p", "seed=1", "--store", str(tmp_path))
    assert_one_error(result, "'seed'", "did you mean 'seeds'", "pool_size")


def test_a_missing_data_folder(tmp_path: Path) -> None:
    result = blindsweep("run", "mini", "-p", f"data={tmp_path}/none", "--store", str(tmp_path / "s"))
    assert_one_error(result, f"{tmp_path}/none")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_gpu_experiment_without_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text(
        "import dataclasses\nfrom sweep import Experiment, Resources\nfrom sweep.experiments import demo\n"
        "def study() -> Experiment:\n"
        "    return dataclasses.replace(demo(), resources={'generator': Resources(gpus_per_worker=1)})\n"
    )
    result = blindsweep("run", str(file), "--store", str(tmp_path / "s"))
    assert_one_error(result, "generator/generator needs 1 GPU; this machine has none", "-p device=cpu")


def test_a_truncated_hans_file(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("no MultiNLI and HANS here")
    data = tmp_path / "data"
    data.mkdir()
    for file in (DATA / "multinli").iterdir():
        (data / file.name).symlink_to(file)
    text = (DATA / "hans" / "heuristics_evaluation_set.txt").read_text()
    (data / "heuristics_evaluation_set.txt").write_text(text[: len(text) // 2])
    result = blindsweep("run", "mini", "-p", f"data={data}", "--store", str(tmp_path / "s"))
    assert_one_error(result, "heuristics_evaluation_set.txt")


def test_no_cluster_to_join(tmp_path: Path) -> None:
    result = blindsweep("run", "demo", "--store", str(tmp_path), "--address", "127.0.0.1:1")
    assert_one_error(result, "--address 127.0.0.1:1", "ray up")
    result = blindsweep("run", "demo", "--store", str(tmp_path), "--address", "ray://head:10001")
    assert_one_error(result, "on the head node")


def test_a_damaged_record_is_named_and_all_others_are_read(tmp_path: Path, record_all: Callable) -> None:
    steps = build_grid(load_experiment("demo").experiment)
    record_all(steps, Store(tmp_path))
    manifest(load_experiment("demo"), steps).save(Store(tmp_path))
    record = Path(Store(tmp_path).folder(steps[0].id)) / "record.json"
    record.write_text(record.read_text()[:40])
    planned = blindsweep("plan", "demo", "--store", str(tmp_path))
    assert planned.exit_code == 0, planned.output
    assert f"1 of {len(steps)} to build" in planned.stdout
    assert f"1 sources: damaged: {record} is not a readable record" in planned.stdout
    shown = blindsweep("status", "--store", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    assert f"demo: {len(steps) - 1} of {len(steps)} artifacts built" in shown.stdout
    assert f"  damaged: {record} is not a readable record" in shown.stdout
    assert len(record.read_text()) == 40, "who only reads changes nothing"


def test_a_damaged_manifest_hides_no_other_study(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Study(name, "A title", {}, ()).save(Store(tmp_path))
    (tmp_path / "studies" / "one.json").write_text("{")
    shown = blindsweep("status", "--store", str(tmp_path))
    assert shown.exit_code == 0 and "one.json is not a readable study" in shown.stdout
    assert "two: 0 of 0 artifacts built" in shown.stdout
    assert_one_error(blindsweep("status", "one", "--store", str(tmp_path)), "one.json is not a readable study")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr(Store, "write_bytes", full)
    assert_one_error(blindsweep("run", "demo", "--store", str(tmp_path)), "the disk is full", "free some space")


def test_status_and_report_of_a_study_that_was_never_run(tmp_path: Path) -> None:
    assert "blindsweep run demo" in blindsweep("status", "--store", str(tmp_path)).stdout
    for command in ("status", "report", "reindex"):
        assert_one_error(blindsweep(command, "demo", "--store", str(tmp_path)), "no study 'demo'")
    assert_one_error(blindsweep("ui", "--store", str(tmp_path)), "run a study first")


def test_mlflow_is_rebuilt_from_the_records(tmp_path: Path, record_all: Callable, empty_database: Path) -> None:
    from mlflow import MlflowClient

    from sweep.run.study_run import manifest

    loaded = load_experiment("demo", ["seeds=0"])
    steps, store = build_grid(loaded.experiment), Store(tmp_path)
    record_all(steps, store)
    manifest(loaded, steps).save(store)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    assert f"{len(steps)} of {len(steps)}" in blindsweep("status", "--store", str(tmp_path)).stdout
    for _ in range(2):
        result = blindsweep("reindex", "--store", str(tmp_path))
        assert result.stdout.startswith(f"demo: {len(steps)} artifacts")
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        found = client.search_runs([client.get_experiment_by_name("demo").experiment_id], "tags.stage = 'task_model'")
        assert len(found) == 3
        assert {run.data.params["kind"] for run in found} == {"original", "synthetic", "biased_synthetic"}


def numeric_options() -> list[tuple[str, ...]]:
    """Each command with each of its options that is a number."""
    found = []
    groups = [((), cli.app), *(((group.name,), group.typer_instance) for group in cli.app.registered_groups)]
    for names, app in groups:
        for command in app.registered_commands:
            name = command.name or command.callback.__name__
            for option, hint in get_type_hints(inspect.unwrap(command.callback)).items():
                if {int, float} & {hint, *get_args(hint)}:
                    found.append((*names, name, f"--{option.replace('_', '-')}"))
    return found


def test_there_are_options_that_are_numbers() -> None:
    assert {("power", "--cost-per-seed"), ("run", "--budget"), ("ui", "--port"), ("audit", "--seed")} <= set(numeric_options())


@pytest.mark.parametrize("option", numeric_options(), ids=" ".join)
def test_a_number_that_makes_no_sense_is_refused_by_its_option(option: tuple[str, ...], tmp_path: Path) -> None:
    *command, name = option
    # What else a command needs; an audit has to have its file before it looks at its margin.
    others = {"power": ["--seed-sd=5"], "audit": [write_pairs(tmp_path / "a.csv")]}.get(command[0], ["none"])
    if command == ["power"] and name == "--seed-sd":
        others = []
    for number in ("-3", "nan", "inf", "-inf"):
        done = blindsweep(*command, *others, f"{name}={number}")
        assert done.exit_code in (1, 2) and name.lstrip("-") in done.stderr, (option, number, done.output)
        # typer's own refusal of an integer does not repeat it.
        assert (number if done.exit_code == 1 else "Invalid value") in done.stderr and "not expected" not in done.stderr


def write_pairs(path: Path) -> str:
    path.write_text("premise,hypothesis,label\n" + "a,b,entailment\nc,d,neutral\n" * 4)
    return str(path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("power", "--seed-sd=5", "--cost-per-seed=-3"), "--cost-per-seed -3: give a number of 0 or more"),
        (("power", "--seed-sd=0"), "--seed-sd 0: give a number of points above 0 and at most 100"),
        (("power", "--seed-sd=1e300"), "--seed-sd 1e+300: give a number of points above 0 and at most 100"),
        (("verdicts", "demo", "--margin=0"), "--margin 0: give a number of points above 0"),
        (("plan", "demo", "--num-gpus=0"), "--num-gpus 0: give a number above 0"),
        (("run", "demo", "--dry-run", "--budget=nan"), "--budget nan: give a number of 0 or more"),
    ],
)
def test_an_option_says_what_its_number_may_be(option: tuple[str, ...], message: str) -> None:
    assert_one_error(blindsweep(*option), message)


def test_a_way_out_that_errors_of_data_name_is_an_option_there_is() -> None:
    pages = [
        CliRunner().invoke(cli.app, ["data", name, "--help"], env={"COLUMNS": "200"}).output for name in ("fetch", "check")
    ]
    there = {option for page in pages for option in re.findall(r"--[a-z][a-z-]+", page)}
    for folder in ("data", "tables"):
        for file in sorted((ROOT / "pipelines" / folder).glob("*.py")):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", file.read_text()))
            assert named <= there, f"{file.name} names {named - there}"
