"""Generation with the real engine: a tiny Llama that knows three examples by heart writes the pool."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.errors import NoticeError, UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import PoolJob, generate, pool_lane
from pipelines.generate.shards import ShardFolder
from pipelines.generate.writer import ShardWriter
from pipelines.resources import Resources, no_report
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import LABELS
from pipelines.tasks.prompts import Parsed, Rejected, generator_text, parse_generated, reject_reasons
from pipelines.workers import printed
from tests.pipelines.tiny_generator import KNOWN, KNOWN_SENTENCES, SENTIMENT, save_models

ROOT = Path(__file__).parents[3]
# 2 x 512 rows are in an engine at a time: more prompt tokens than vLLM takes in one step (4,096), so that it
# would split a prompt if it were allowed to.
CONFIG = GenerationConfig(
    num_per_label=500,
    shard_size=96,
    max_new_tokens=64,
    max_num_seqs=512,
    dtype="float32",
    generator_id="tiny",
)
ONE = Resources(num_workers=1)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    import ray

    context = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


Reports = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def pool(ray_address: str, models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Reports]:
    """An uninterrupted run: its output, metrics and reports."""
    output = tmp_path_factory.mktemp("pool")
    reports: Reports = []

    def report(metrics: Any, step: int) -> None:
        reports.append((step, dict(metrics)))

    metrics = generate(CONFIG, str(models / "trained"), str(output), resources=ONE, report=report)
    return output, metrics, reports


def commits(output: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (output / "shards").glob("*.json")}


def rows(output: Path, folder: str) -> list[dict[str, Any]]:
    return [row for path in sorted((output / folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_pool_holds_examples_enough_of_each_label(pool: tuple[Path, dict[str, Any], Reports]) -> None:
    output, metrics, _ = pool
    examples = read_examples(output / "pool")
    assert examples.column_names == ["id", "label", "premise", "hypothesis", "shard", "seed", "generator"]
    assert set(examples["generator"].to_pylist()) == {"tiny"}
    labels = examples["label"].to_pylist()
    for label in LABELS:
        # At least 500, and not a shard more than that takes.
        assert 500 <= labels.count(label) == metrics[f"parsed/{label}"]
        of_label = [c["num_parsed"] for c in commits(output).values() if c["label"] == label]
        assert sum(of_label) - of_label[-1] < 500
    known = {(label, *pair) for label, pair in KNOWN.items()}
    written = list(zip(labels, examples["premise"].to_pylist(), examples["hypothesis"].to_pylist(), strict=True))
    # The label is a condition: nearly all of what is written for it is what was learnt for it.
    assert sum(example in known for example in written) > 0.6 * len(written)
    assert len(set(written)) > 50, "every row should be sampled with a seed of its own"
    assert len(set(examples["seed"].to_pylist())) == examples.num_rows


def test_every_prompt_is_in_the_pool_or_kept_as_a_reject(pool: tuple[Path, dict[str, Any], Reports]) -> None:
    output, metrics, _ = pool
    parsed, rejects = rows(output, "pool"), rows(output, "rejects")
    ids = [row["id"] for row in (*parsed, *rejects)]
    assert sorted(ids) == sorted(f"{name}-{row:05d}" for name in commits(output) for row in range(96))
    assert len(rejects) == metrics["rejected"] > 0
    for row in rejects:
        assert parse_generated(row["text"]) == Rejected(row["reason"], row["text"])
    for reason in {row["reason"] for row in rejects}:
        assert metrics[f"rejected/{reason}"] == sum(row["reason"] == reason for row in rejects)
    assert metrics["yield"] == pytest.approx(len(parsed) / len(ids))
    summary = json.loads((output / "yield.json").read_text())
    assert sum(summary["parsed"].values()) == len(parsed)
    assert sum(summary["rejected"].values()) == len(rejects)


def test_the_pool_is_the_first_shards_of_each_label(pool: tuple[Path, dict[str, Any], Reports]) -> None:
    output, metrics, _ = pool
    committed = commits(output)
    for label in LABELS:
        indices = sorted(commit["index"] for commit in committed.values() if commit["label"] == label)
        assert indices == list(range(len(indices)))
    for folder in ("pool", "rejects"):
        assert {path.stem for path in (output / folder).iterdir()} == set(committed)
    assert metrics["num_shards"] == len(committed)


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_engines_that_were_up_before_their_generator_write_the_same_pool(
    models: Path, pool: tuple[Path, dict[str, Any], Reports], tmp_path: Path
) -> None:
    import ray

    lane = pool_lane(CONFIG, str(models / "random"), str(tmp_path), ONE)
    while not ray.get(lane._desk.__ray_call__.remote(lambda desk: desk._up)):
        assert not lane._error
        time.sleep(0.2)
    assert not list(tmp_path.iterdir()), "nothing is written with placeholder weights"
    began = time.time()
    metrics, times = lane.run(PoolJob.of(CONFIG, str(models / "trained"), str(tmp_path), no_report))
    lane.close()
    assert times.up < began < times.began
    same = ("parsed", "rejected", "generated_tokens", "num_shards")
    assert {name: metrics[name] for name in same} == {name: pool[1][name] for name in same}
    for path in pool[0].rglob("*.parquet"):
        assert (tmp_path / path.relative_to(pool[0])).read_bytes() == path.read_bytes()


def test_progress_is_reported_shard_by_shard(pool: tuple[Path, dict[str, Any], Reports]) -> None:
    _, metrics, reports = pool
    assert [step for step, _ in reports] == list(range(1, len(reports) + 1))
    assert len(reports) == metrics["num_shards"] + metrics["num_surplus_shards"]
    assert [m["parsed"] for _, m in reports] == sorted(m["parsed"] for _, m in reports)
    assert all(m["examples_per_s"] > 0 for _, m in reports)
    last = reports[-1][1]
    assert last["examples_per_s"] == pytest.approx(last["parsed"] / metrics["generate_s"])
    assert metrics["generated_tokens"] > 10 * metrics["parsed"]
    assert metrics["engine_start_s"] > 0


def notes_of_engines(output: Path) -> list[Path]:
    """A file for each engine that was started for a pool."""
    return sorted(printed._folder(str(output)).iterdir())


def test_an_engine_has_a_note_of_where_it_prints(pool: tuple[Path, dict[str, Any], Reports]) -> None:
    notes = [json.loads(path.read_text()) for path in notes_of_engines(pool[0])]
    assert notes and all(note["worker"].startswith("a vLLM engine (pid ") and len(note["files"]) == 2 for note in notes)


def test_a_finished_pool_is_left_as_it_is(pool: tuple[Path, dict[str, Any], Reports], models: Path) -> None:
    output, metrics, _ = pool
    before = {path: path.stat().st_mtime_ns for folder in ("pool", "shards") for path in (output / folder).iterdir()}
    engines = notes_of_engines(output)
    again = generate(CONFIG, str(models / "trained"), str(output), resources=ONE)
    assert notes_of_engines(output) == engines, "no engine should start"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    timeless = {name: value for name, value in again.items() if name != "total_s"}
    assert timeless == {name: metrics[name] for name in timeless} | {"num_surplus_shards": 0}
    assert "examples_per_s" not in again, "nothing was generated, so there is no rate"


def test_a_pool_whose_end_was_broken_off_is_ended_by_a_lane_without_engines(
    pool: tuple[Path, dict[str, Any], Reports], models: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pool"
    shutil.copytree(pool[0], output)
    (output / "yield.json").unlink()
    lane = pool_lane(CONFIG, str(models / "random"), str(output), ONE)
    metrics, _ = lane.run(PoolJob.of(CONFIG, str(models / "trained"), str(output), no_report))
    lane.close()
    assert metrics["parsed"] == pool[1]["parsed"] and "engine_start_s" not in metrics
    assert (
        json.loads((output / "yield.json").read_text())["parsed"] == json.loads((pool[0] / "yield.json").read_text())["parsed"]
    )


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_an_exact_pool_is_the_same_but_for_its_surplus_which_is_kept(
    ray_address: str, models: Path, pool: tuple[Path, dict[str, Any], Reports], tmp_path: Path
) -> None:
    config = replace(CONFIG, exact=True, num_per_label=(130, 200, 110))
    metrics = generate(config, str(models / "trained"), str(tmp_path), resources=ONE)
    kept = rows(tmp_path, "pool")
    for label, number in zip(LABELS, (130, 200, 110), strict=True):
        of_label = [row for row in kept if row["label"] == label]
        assert of_label == [row for row in rows(pool[0], "pool") if row["label"] == label][:number]
    surplus = rows(tmp_path, "surplus")
    assert len(surplus) == metrics["surplus"] == metrics["parsed"] - 440 > 0
    ids = [row["id"] for row in (*kept, *surplus, *rows(tmp_path, "rejects"))]
    assert sorted(ids) == sorted(f"{name}-{row:05d}" for name in commits(tmp_path) for row in range(96))
    summary = json.loads((tmp_path / "yield.json").read_text())
    assert sum(summary["surplus"].values()) == metrics["surplus"]
    # Again: nothing is generated and nothing cut twice.
    again = generate(config, str(models / "trained"), str(tmp_path), resources=ONE)
    assert again["surplus"] == metrics["surplus"] and "examples_per_s" not in again
    assert (rows(tmp_path, "pool"), rows(tmp_path, "surplus")) == (kept, surplus)
    with pytest.raises(UserError, match="other sampling settings"):
        generate(replace(config, num_per_label=(130, 200, 111)), str(models / "trained"), str(tmp_path), resources=ONE)


def test_an_output_of_another_request_is_refused(pool: tuple[Path, dict[str, Any], Reports], models: Path) -> None:
    for other in (
        replace(CONFIG, temperature=0.5),
        replace(CONFIG, seed=1),
        replace(CONFIG, generator_id="other"),
    ):
        with pytest.raises(UserError, match="other sampling settings"):
            generate(other, str(models / "trained"), str(pool[0]), resources=ONE)


SCRIPT = """
import sys, ray
from pipelines.resources import Resources, no_report
from pipelines.generate.config import GenerationConfig
from pipelines.generate.pool import PoolJob, generate, pool_lane
from pipelines.tasks.task import Field, Task
if __name__ == "__main__":
    address, config, generator, output = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.path[-1]}})
    generate(eval(config), generator, output, resources=Resources())
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_run_is_finished_with_the_same_pool(
    ray_address: str, models: Path, pool: tuple[Path, dict[str, Any], Reports], tmp_path: Path
) -> None:
    arguments = (ray_address, repr(CONFIG), str(models / "trained"), str(tmp_path))
    path = f"import sys; sys.path.append({str(ROOT)!r})\n"
    with subprocess.Popen([sys.executable, "-c", path + SCRIPT, *arguments]) as driver:
        wait_until(lambda: len(commits(tmp_path)) >= 2 or driver.poll() is not None)
        driver.kill()
    assert not (tmp_path / "yield.json").exists(), "the run ended before it could be killed"
    wait_until(lambda: not engines_alive())

    left = sorted(commits(tmp_path))
    assert 2 <= len(left) < len(commits(pool[0]))
    lost, damaged, *kept = left
    (tmp_path / "shards" / f"{lost}.json").unlink()
    (tmp_path / "pool" / f"{damaged}.parquet").write_bytes(b"cut off")
    before = {name: (tmp_path / "pool" / f"{name}.parquet").stat().st_mtime_ns for name in kept}

    generated: list[int] = []
    metrics = generate(
        CONFIG,
        str(models / "trained"),
        str(tmp_path),
        resources=ONE,
        report=lambda _, step: generated.append(step),
    )
    assert {name: (tmp_path / "pool" / f"{name}.parquet").stat().st_mtime_ns for name in kept} == before
    assert len(generated) == metrics["num_shards"] + metrics["num_surplus_shards"] - len(kept)
    # The same examples as without interruption, in other batches: a row depends on its seed alone.
    for folder in ("pool", "rejects"):
        assert rows(tmp_path, folder) == rows(pool[0], folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pool_that_a_notice_stops_is_finished_with_the_same_content(
    pool: tuple[Path, dict[str, Any], Reports], models: Path, tmp_path: Path
) -> None:
    from pipelines.workers import notice

    def report(metrics: Any, step: int) -> None:
        notice.tell_run()

    one_at_a_time = replace(CONFIG, max_num_seqs=96)
    try:
        with pytest.raises(NoticeError, match=r"with \d+ shards committed"):
            generate(one_at_a_time, str(models / "trained"), str(tmp_path), resources=ONE, report=report)
    finally:
        notice._flag("run").unlink()
    assert 0 < len(commits(tmp_path)) < len(commits(pool[0]))
    generate(CONFIG, str(models / "trained"), str(tmp_path), resources=ONE)
    assert commits(tmp_path) == commits(pool[0])


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def engines_alive() -> bool:
    import ray._private.state

    actors = ray._private.state.actors().values()
    return any("ShardWriter" in actor["ActorClassName"] and actor["State"] != "DEAD" for actor in actors)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_too_low_a_yield_says_so_and_keeps_the_rejects(ray_address: str, models: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, max_new_tokens=8)
    engines = []
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            generate(config, str(models / "random"), str(tmp_path), resources=ONE)
        message = str(raised.value)
        assert "entailment: 0 of" in message
        assert "500 wanted" in message
        assert "rejected as no_premise" in message
        assert "Train the generator longer" in message
        engines.append(notes_of_engines(tmp_path))
    assert engines[0] == engines[1], "what is hopeless should not be tried again"
    # It gives up after a few shards, not after the 27 a label that a yield of min_yield would need.
    assert 3 <= len(commits(tmp_path)) < 30
    assert len(rows(tmp_path, "rejects")) == 96 * len(commits(tmp_path))
    assert not (tmp_path / "yield.json").exists()


@pytest.mark.slow
def test_a_text_that_stops_early_is_the_same_text_up_to_there(
    pool: tuple[Path, dict[str, Any], Reports], models: Path, tmp_path: Path
) -> None:
    output, whole, _ = pool
    config = replace(CONFIG, stop_early=True)
    early = generate(config, str(models / "trained"), str(tmp_path), resources=ONE)
    texts = {
        row["id"]: f". Premise: {row['premise']} Hypothesis: {row['hypothesis']}{CONFIG.end_marker}"
        for row in rows(output, "pool")
    }
    num_parsed_whole = len(texts)
    texts |= {row["id"]: row["text"] for row in rows(output, "rejects")}
    expected = {}
    for name, text in texts.items():
        before, dash, _ = text.partition(config.stop)
        result = parse_generated(config.completed(before + dash))
        if isinstance(result, Parsed):
            expected[name] = tuple(result.fields.values())
    # This generator often goes wrong within the marker.
    assert len(expected) > num_parsed_whole + 20
    written = {row["id"]: (row["premise"], row["hypothesis"]) for row in rows(tmp_path, "pool")}
    common = texts.keys() & {row["id"] for row in rows(tmp_path, "pool") + rows(tmp_path, "rejects")}
    assert len(common) > 1_000
    assert {id: written.get(id) for id in common} == {id: expected.get(id) for id in common}
    tokens = [pool["generated_tokens"] / pool["num_shards"] for pool in (early, whole)]
    assert tokens[0] < tokens[1] - 5 * CONFIG.shard_size / 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pool_of_another_task_has_its_labels_and_fields(ray_address: str, tmp_path: Path) -> None:
    texts = [generator_text(label, {"sentence": text}, task=SENTIMENT) for label, text in KNOWN_SENTENCES.items()]
    save_models(tmp_path, texts)
    config = replace(CONFIG, task=SENTIMENT, num_per_label=(40, 60), shard_size=32, exact=True)
    metrics = generate(config, str(tmp_path / "trained"), str(tmp_path / "out"), resources=ONE)
    examples = read_examples(tmp_path / "out" / "pool", SENTIMENT)
    labels, sentences = examples["label"].to_pylist(), examples["sentence"].to_pylist()
    assert (labels.count("not bad"), labels.count("bad")) == (40, 60)
    assert sum(KNOWN_SENTENCES[label] == text for label, text in zip(labels, sentences, strict=True)) > 50
    assert {name for name in metrics if name.startswith("rejected/")} <= {f"rejected/{r}" for r in reject_reasons(SENTIMENT)}
    assert metrics["yield/not bad"] > 0.5


def test_a_missing_generator_and_two_gpus_an_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has neither model/config\.json nor config\.json"):
        generate(CONFIG, str(tmp_path / "nothing"), str(tmp_path / "out"), resources=ONE)
    with pytest.raises(UserError, match="raise num_workers"):
        generate(CONFIG, str(tmp_path), str(tmp_path / "out"), resources=Resources(gpus_per_worker=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "raised", "message"),
    [
        (errno.ENOSPC, UserError, r"^/full/file: the disk is full; free some space"),
        (errno.EACCES, PermissionError, "Permission denied"),
    ],
)
def test_a_full_disk_on_a_worker_is_told_as_the_users_to_mend(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path,
    number: int, raised: type[Exception], message: str,
) -> None:  # fmt: skip
    class FailingWriter(ShardWriter):
        def __init__(self, **_: Any) -> None:
            pass

        def _write(self, shard: Any) -> Any:
            raise OSError(number, os.strerror(number), "/full/file")

    monkeypatch.setattr("pipelines.generate.writer.ShardWriter", FailingWriter)
    with pytest.raises(raised, match=message):
        generate(CONFIG, str(models / "trained"), str(tmp_path), resources=ONE)


def test_a_folder_is_not_made_before_something_is_written(tmp_path: Path) -> None:
    assert ShardFolder(str(tmp_path / "out")).commits() == {}
    assert not (tmp_path / "out").exists()
