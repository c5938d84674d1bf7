"""A store that has all records of a study and lacks files, as a copy without them: each command says so, and moves nothing."""

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from analysis.publication.__main__ import main as publication
from pipelines.tasks.nli import LABELS
from sweep import cli
from sweep.graph.records import Store
from sweep.graph.step import Step
from sweep.plan.plan import Plan
from sweep.run.ends import Stop
from sweep.run.study_run import Result
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment
from tests.analysis.fake_store import parquet
from tests.analysis.item_study import ItemStudy, clear
from tests.sweep.conftest import record_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Fourteen evaluations."""
    study = ItemStudy(tmp_path / "store", clear)
    study.grid(starting_sizes=(0,), num_seeds=2)
    (study.folder("sources", "data") / "train.parquet").write_bytes(parquet([("A man", "A man", str(one)) for one in LABELS]))
    return Store(study.write())


def everything(store: Store) -> list[Path]:
    return sorted(Path(store.uri).rglob("*"))


def remove(store: Store, name: str) -> None:
    """Of all evaluations."""
    paths = sorted(Path(store.uri, "evaluation").glob(f"*/{name}"))
    assert len(paths) == 14
    for path in paths:
        path.unlink()


@pytest.mark.parametrize("name", ["logits.parquet", "metrics.json"])
@pytest.mark.parametrize("command", ["report", "report --partial", "verdicts", "verdicts --partial", "compare tiny", "bundle"])
def test_what_reads_results_names_a_file_and_how_to_go_on(store: Store, name: str, command: str, tmp_path: Path) -> None:
    remove(store, name)
    before = everything(store)
    command, *more = command.split()
    more += {"report": ["--output", str(tmp_path / "out")], "bundle": [str(tmp_path / "piece.zip")]}.get(command, [])
    said = CliRunner().invoke(cli.app, [command, "tiny", *more, "--store", store.uri])
    # A report without claims, or of what is there, is written and says why there is no more.
    is_written = command == "report" and (name == "logits.parquet" or "--partial" in more)
    assert said.exit_code == (0 if is_written else 1) and not isinstance(said.exception, Exception), said.output
    assert f"/{name} is missing" in said.output and "restore it, or `blindsweep verify --set-aside`" in said.output
    assert everything(store) == before and not (tmp_path / "piece.zip").exists()


def test_what_is_published_is_not_made_of_it(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remove(store, "logits.parquet")
    before = everything(store)
    given = ["keep", "tiny", "--store", store.uri, "--data", str(tmp_path / "kept"), "--plan", str(tmp_path / "none.md")]
    assert publication(given) == 1
    said = capsys.readouterr().err
    assert "/logits.parquet is missing" in said and "restore it" in said
    assert everything(store) == before


def test_status_counts_what_has_no_files(store: Store) -> None:
    clean = CliRunner().invoke(cli.app, ["status", "tiny", "--store", store.uri])
    assert clean.exit_code == 0 and "damaged" not in clean.output
    remove(store, "logits.parquet")
    before = everything(store)
    said = CliRunner().invoke(cli.app, ["status", "tiny", "--store", store.uri])
    (line,) = [line for line in said.output.splitlines() if "damaged" in line]
    assert line.startswith("  damaged: 14 evaluation have not the files of their records (evaluation/start0-")
    assert line.endswith("/logits.parquet is missing, for one); `plan` says what a run does")
    assert '"damaged": 14' in CliRunner().invoke(cli.app, ["status", "tiny", "--store", store.uri, "--json"]).output
    assert everything(store) == before


def build(steps: Iterable[Step], store: Store) -> None:
    for step in steps:
        store.write_bytes(f"{store.folder(step.id)}/value.parquet", b"abc")
        store.write_record(record_of(step, files=store.files(store.folder(step.id))))


def test_plan_and_run_say_the_same_and_a_run_moves_nothing_until_it_is_told_to(tmp_path: Path) -> None:
    store, steps = Store(tmp_path / "store"), build_grid(load_experiment("demo").experiment)
    build(steps, store)
    lost = [step for step in steps if step.stage in ("evaluation", "training_set")]
    assert len(lost) > 10
    for step in lost:
        Path(store.folder(step.id), "value.parquet").unlink()
    before = everything(store)
    planned = CliRunner().invoke(cli.app, ["plan", "demo", "--store", store.uri])
    assert planned.exit_code == 0 and f"{len(lost)} of {len(steps)} to build" in planned.output
    assert f"{len(lost)} of the {len(steps)} artifacts that are there are damaged (" in planned.output
    for options in ([], ["--budget", "0"]):
        said = CliRunner().invoke(cli.app, ["run", "demo", "--store", store.uri, *options])
        assert said.exit_code == 1 and f"{len(lost)} of the {len(steps)} artifacts that are there are damaged" in said.stderr
        assert f"`blindsweep verify --store {store.uri} --set-aside`" in said.stderr
    assert everything(store) == before
    # As it says: verify reads the disk, and what it sets aside a run may build.
    said = CliRunner().invoke(cli.app, ["verify", "--store", store.uri, "--set-aside"])
    assert f"{len(lost)} artifacts are damaged" in said.output
    planned = CliRunner().invoke(cli.app, ["plan", "demo", "--store", store.uri])
    assert f"{len(lost)} of {len(steps)} to build" in planned.output and "damaged" not in planned.output


def test_a_run_that_fails_says_what_it_has_set_aside_once_and_plans_with_what_the_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, steps = Store(tmp_path / "store"), build_grid(load_experiment("demo").experiment)
    build(steps, store)
    changed = next(step for step in steps if step.stage == "evaluation")
    store.write_bytes(f"{store.folder(changed.id)}/value.parquet", b"abd")
    plans: list[Plan] = []

    def fail(
        loaded: object, store: Store, uri: str, options: object, plan: Plan, stop: Stop, *_: object, **how: object
    ) -> Result:
        plans.append(plan)
        stop.notes.append("one is set aside")
        failure = {"stage": "evaluation", "slug": "one", "fingerprint": "ab" * 32, "error": "no GPU today"}
        return Result(1, 0, 0, (failure,), (), notes=tuple(stop.notes))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sweep.run.ends.ctypes.CDLL", Mock())
    monkeypatch.setattr("sweep.run.study_run.run_study", fail)
    said = CliRunner().invoke(cli.app, ["run", "demo", "--store", store.uri, "--no-report"])
    assert said.exit_code == 1 and "failed   evaluation/one: no GPU today" in said.stderr, said.output
    assert said.stderr.count("Warning: one is set aside\n") == 1
    assert [member.step.fingerprint for member in plans[0].steps if member.damage] == [changed.fingerprint]
