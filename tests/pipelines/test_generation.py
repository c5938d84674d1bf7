"""Generation with the real engine: a tiny Llama that knows three examples by heart writes the pool."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.engine_options import engine_options, kv_cache_bytes, shards_in_flight
from pipelines.errors import UserError
from pipelines.examples import LABELS, read_examples
from pipelines.generation_config import GenerationConfig
from pipelines.identity import identity_fields, runtime_fields
from pipelines.pool import generate
from pipelines.prompts import HYPHENS, Parsed, Rejected, generator_text, parse_generated
from pipelines.resources import Resources
from pipelines.shards import Shard, ShardFolder
from pipelines.writer import encode_prompts, tables
from tests.pipelines.tiny_generator import KNOWN

ROOT = Path(__file__).parents[2]
# 2 x 512 rows are in an engine at a time: more prompt tokens than vLLM takes in one step (4 096), so that it
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


def test_a_finished_pool_is_left_as_it_is(pool: tuple[Path, dict[str, Any], Reports], models: Path) -> None:
    output, metrics, _ = pool
    before = {path: path.stat().st_mtime_ns for folder in ("pool", "shards") for path in (output / folder).iterdir()}
    started = time.perf_counter()
    again = generate(CONFIG, str(models / "trained"), str(output), resources=ONE)
    assert time.perf_counter() - started < 5, "no engine should start"
    assert before == {path: path.stat().st_mtime_ns for path in before}
    timeless = {name: value for name, value in again.items() if name != "total_s"}
    assert timeless == {name: metrics[name] for name in timeless} | {"num_surplus_shards": 0}
    assert "examples_per_s" not in again, "nothing was generated, so there is no rate"


@pytest.mark.timeout(300)
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
from pipelines.resources import Resources
from pipelines.generation_config import GenerationConfig
from pipelines.pool import generate
if __name__ == "__main__":
    address, config, generator, output = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": sys.path[-1]}})
    generate(eval(config), generator, output, resources=Resources())
"""


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


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def engines_alive() -> bool:
    import ray._private.state

    actors = ray._private.state.actors().values()
    return any("ShardWriter" in actor["ActorClassName"] and actor["State"] != "DEAD" for actor in actors)


@pytest.mark.timeout(300)
def test_too_low_a_yield_says_so_and_keeps_the_rejects(ray_address: str, models: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, max_new_tokens=8)
    for attempt in range(2):
        started = time.perf_counter()
        with pytest.raises(UserError) as raised:
            generate(config, str(models / "random"), str(tmp_path), resources=ONE)
        message = str(raised.value)
        assert "entailment: 0 of" in message
        assert "500 wanted" in message
        assert "rejected as no_premise" in message
        assert "Train the generator longer" in message
        if attempt:
            assert time.perf_counter() - started < 5, "what is hopeless should not be tried again"
    # It gives up after a few shards, not after the 27 a label that a yield of min_yield would need.
    assert 3 <= len(commits(tmp_path)) < 30
    assert len(rows(tmp_path, "rejects")) == 96 * len(commits(tmp_path))
    assert not (tmp_path / "yield.json").exists()


def test_a_prompt_is_encoded_as_in_training_up_to_its_label(models: Path) -> None:
    from transformers import AutoTokenizer

    folder = str(models / "trained" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for label, ids in encode_prompts(folder).items():
        text = tokenizer(generator_text(label, *KNOWN[label]))["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert text[: len(ids)] == ids
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith(f"is {label}")


def test_the_end_of_sequence_that_a_tokenizer_adds_is_not_part_of_the_prompt(models: Path, tmp_path: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "trained" / "model")
    special = [("<s>", 0), ("</s>", 1)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    assert encode_prompts(str(tmp_path)) == encode_prompts(str(models / "trained" / "model"))


def test_texts_become_rows_with_the_ids_and_seeds_of_their_shard() -> None:
    shard = Shard(LABELS[1], 4, 11, 2)
    text = ". Premise: A dog ran . Hypothesis: It moved . – This is the end of the example."
    parsed, rejects = tables(shard, [". Premise: A dog", text], CONFIG)
    assert parsed.to_pylist() == [
        {"id": "neutral-00004-00001", "label": "neutral", "premise": "A dog ran .",
         "hypothesis": "It moved .", "shard": 4, "seed": shard.row_seed(1), "generator": "tiny"}
    ]  # fmt: skip
    assert rejects.to_pylist() == [
        {"id": "neutral-00004-00000", "label": "neutral", "shard": 4, "seed": shard.row_seed(0),
         "generator": "tiny", "reason": "no_hypothesis", "text": ". Premise: A dog"}
    ]  # fmt: skip


def test_the_engine_holds_a_prompt_and_its_text_but_never_more_than_the_model(models: Path) -> None:
    model = str(models / "trained" / "model")
    assert engine_options(CONFIG, model, ONE, prompt_lengths=[20])["max_model_len"] == 84
    assert engine_options(GenerationConfig(), model, ONE, prompt_lengths=[20])["max_model_len"] == 128


def test_engines_share_a_gpu_by_their_fractions(models: Path) -> None:
    model = str(models / "trained" / "model")
    half = engine_options(CONFIG, model, Resources(gpus_per_worker=0.5), prompt_lengths=[20])
    assert half["gpu_memory_utilization"] == pytest.approx(0.45)
    assert "kv_cache_memory_bytes" not in half
    shared = engine_options(CONFIG, model, Resources(gpus_per_worker=0.5), prompt_lengths=[20], gpu_bytes=8 * 2**30)
    assert shared["kv_cache_memory_bytes"] > 0
    whole = engine_options(CONFIG, model, Resources(gpus_per_worker=1), prompt_lengths=[20], gpu_bytes=8 * 2**30)
    assert "kv_cache_memory_bytes" not in whole
    assert "gpu_memory_utilization" not in engine_options(CONFIG, model, ONE, prompt_lengths=[20])


def test_an_engines_cache_is_what_it_needs_or_what_its_share_leaves(tmp_path: Path) -> None:
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512, "num_hidden_layers": 10}
    (tmp_path / "config.json").write_text(json.dumps(shape))

    # 2 heads of 64 numbers, keys and values of 2 bytes, 10 layers: 5 120 bytes a token.
    def cache(num_seqs: int, context: int, gib: float) -> int:
        return kv_cache_bytes(str(tmp_path), num_seqs=num_seqs, context=context, number_bytes=2, gpu_bytes=gib * 2**30)

    assert cache(4, 100, gib=3) == 4 * 100 * 5_120
    assert cache(4_096, 1_024, gib=7) == 5 * 2**30
    with pytest.raises(UserError, match=r"share of the GPU is 2\.1 GiB"):
        cache(4_096, 1_024, gib=2.1)


def test_graphs_are_captured_up_to_the_whole_batch(models: Path) -> None:
    config = replace(CONFIG, max_num_seqs=200, enforce_eager=False)
    options = engine_options(config, str(models / "trained" / "model"), Resources(gpus_per_worker=1), prompt_lengths=[20])
    assert options["compilation_config"]["cudagraph_capture_sizes"] == [1, 2, 4, 8, 16, 32, 64, 128, 192, 200]


@pytest.mark.parametrize(
    ("shard_size", "num_seqs", "expected"),
    [(1_024, 1_024, 2), (4_096, 1_024, 2), (256, 1_024, 8), (96, 512, 11)],
)
def test_two_batches_of_rows_are_in_an_engine(shard_size: int, num_seqs: int, expected: int) -> None:
    config = GenerationConfig(shard_size=shard_size, max_num_seqs=num_seqs)
    assert shards_in_flight(config, on_gpu=True) == expected
    assert shards_in_flight(replace(config, shards_in_flight=5), on_gpu=True) == 5


def test_every_field_is_identity_or_runtime_on_purpose() -> None:
    assert identity_fields(GenerationConfig) == {
        "num_per_label", "exact", "shard_size", "seed", "temperature", "top_p", "top_k", "max_new_tokens",
        "end_marker", "dtype", "stand_ins", "stop_early",
    }  # fmt: skip
    assert runtime_fields(GenerationConfig) == {
        "min_yield", "max_num_seqs", "shards_in_flight", "enforce_eager", "engine_process", "attention_backend",
        "gpu_memory_utilization", "cpu_kv_cache_gib", "progress_bars", "generator_id",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_per_label", 0), ("num_per_label", (1, 2)), ("shard_size", 0), ("temperature", 0.0),
        ("top_p", 0.0), ("top_k", 0), ("max_new_tokens", 0), ("end_marker", "END"), ("dtype", "int8"),
        ("min_yield", 0.0), ("gpu_memory_utilization", 1.5), ("max_num_seqs", -1), ("shards_in_flight", -1),
        ("cpu_kv_cache_gib", 0), ("attention_backend", "fastest"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{field}="):
        replace(GenerationConfig(), **{field: value})


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
            expected[name] = (result.premise, result.hypothesis)
    # This generator often goes wrong within the marker.
    assert len(expected) > num_parsed_whole + 20
    written = {row["id"]: (row["premise"], row["hypothesis"]) for row in rows(tmp_path, "pool")}
    common = texts.keys() & {row["id"] for row in rows(tmp_path, "pool") + rows(tmp_path, "rejects")}
    assert len(common) > 1_000
    assert {id: written.get(id) for id in common} == {id: expected.get(id) for id in common}
    tokens = [one["generated_tokens"] / one["num_shards"] for one in (early, whole)]
    assert tokens[0] < tokens[1] - 5 * CONFIG.shard_size / 2


def test_a_marker_that_begins_as_texts_go_on_cannot_stop_early() -> None:
    with pytest.raises(UserError, match=r"^stop_early=True with end_marker=' -- This"):
        GenerationConfig(stop_early=True, end_marker=HYPHENS)
    config = GenerationConfig(stop_early=True)
    assert config.completed(". Premise: a Hypothesis: b –") == f". Premise: a Hypothesis: b{config.end_marker}"
    assert config.completed(". Premise: a Hypothesis: b") == ". Premise: a Hypothesis: b"


def test_a_missing_generator_and_two_gpus_an_engine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has neither model/config\.json nor config\.json"):
        generate(CONFIG, str(tmp_path / "nothing"), str(tmp_path / "out"), resources=ONE)
    with pytest.raises(UserError, match="raise num_workers"):
        generate(CONFIG, str(tmp_path), str(tmp_path / "out"), resources=Resources(gpus_per_worker=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "raised", "message"),
    [(errno.ENOSPC, UserError, "disk is full"), (errno.EACCES, PermissionError, "Permission denied")],
)
def test_a_full_disk_on_a_worker_is_told_as_the_users_to_mend(
    ray_address: str, monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path,
    number: int, raised: type[Exception], message: str,
) -> None:  # fmt: skip
    class FailingWriter:
        def __init__(self, **_: Any) -> None:
            pass

        def __call__(self, batch: Any) -> Any:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipelines.writer.ShardWriter", FailingWriter)
    with pytest.raises(raised, match=message):
        generate(CONFIG, str(models / "trained"), str(tmp_path), resources=ONE)


def test_a_folder_is_not_made_before_something_is_written(tmp_path: Path) -> None:
    assert ShardFolder(str(tmp_path / "out")).commits() == {}
    assert not (tmp_path / "out").exists()
