"""Each benchmark as a command, on the CPU with a tiny model: its result has every variant and fits the schema."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
from pipelines.models.quantization import computes_in_fp8

ROOT = Path(__file__).parents[2]
DATA = (ROOT / ".." / "shared" / "data").resolve()
SCHEMA = json.loads((ROOT / "benchmarks" / "schema.json").read_text())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    sources, base = (str(tmp_path_factory.mktemp(name)) for name in ("sources", "base"))
    prepare_template_corpus(TemplateCorpusConfig(), sources)
    shape = ScratchModelConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=96, vocabulary_size=400, max_length=1_024
    )
    prepare_base_model(shape, base, sources=sources)
    return {"sources": sources, "base": base}


def result_of(benchmark: str, output: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *words, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    result = json.loads(output.read_text())
    jsonschema.validate(result, SCHEMA)
    return {figure["name"]: set(figure["variants"]) for figure in result["figures"]}


@pytest.mark.parametrize("method", [("--method", "full"), ("--together", "2", "--share-prefix")])
def test_task_model(artifacts: dict[str, str], tmp_path: Path, method: tuple[str, ...]) -> None:
    words = ["--num=160", "--batch-size=2", "--num-evaluation=40", "--evaluation-sets=template_test", "--device=cpu"]
    places = [f"--base={artifacts['base']}", f"--sources={artifacts['sources']}"]
    variants = result_of("task_model", tmp_path / "result.json", *places, *words, *method, "--profile")
    assert variants == {"training": {"ours", "peer"}, "evaluation": {"ours", "peer"}}
    details = json.loads((tmp_path / "result.json").read_text())["details"]
    for profile in (details["profile"], details["evaluation_profile"]):
        assert 0 < profile["kernels"][0]["ms_per_step"] < profile["busy_ms_per_step"] and profile["launches_per_step"] > 50


def test_a_base_with_random_weights_in_fp8_is_trained_on_rows_of_multinli_s_own_files(
    artifacts: dict[str, str], tmp_path: Path
) -> None:
    base, model = tmp_path / "base", f"{artifacts['base']}/model"
    command = [sys.executable, "-m", "benchmarks.base", str(base), "--precision=fp8"]
    refused = subprocess.run([*command, "--tokenizer", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "has no tokenizer" in refused.stderr
    subprocess.run([*command, "--tokenizer", model], cwd=ROOT, check=True)
    assert computes_in_fp8(base / "model") and os.listdir(tmp_path) == ["base"]
    if not DATA.is_dir():
        pytest.skip("MultiNLI and HANS are not here")
    words = ["--num=32", "--batch-size=2", "--evaluation-sets", "--device=cpu", "--variants=ours"]
    variants = result_of("task_model", tmp_path / "result.json", f"--base={base}", f"--sources={DATA}", *words)
    assert variants == {"training": {"ours"}}


def test_task_model_that_is_ended_in_its_second_run_has_the_figures_of_the_first(
    artifacts: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    words = ["--num=160", "--batch-size=2", "--num-evaluation=40", "--evaluation-sets=template_test", "--device=cpu"]
    places = [f"--base={artifacts['base']}", f"--sources={artifacts['sources']}", f"--output={output}"]
    command = [sys.executable, "-m", "benchmarks.task_model", *places, *words, "--variants", "ours", "--repeats=3"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            # Ray has put its handler of the signal in the place of the benchmark's by then.
            if "ours: setting up" in line and any("ours, run 2 of 3" in earlier for earlier in lines):
                process.send_signal(signal.SIGTERM)
                break
        lines += process.stderr
    assert process.returncode == 1, lines
    result = json.loads(output.read_text())
    jsonschema.validate(result, SCHEMA)
    figures = {figure["name"]: figure["variants"]["ours"]["values"] for figure in result["figures"]}
    assert {name: len(values) for name, values in figures.items()} == {"training": 1, "evaluation": 1}
    assert re.fullmatch(r"cut off by SIGTERM after \d+ s, in ours: .*", result["cut_off"])
    assert result["cut_off"] in lines[-1]
    assert any(re.match(r"\[ *\d+ s; about \d+ s left\] ours, run 2 of 3", line) for line in lines)


def test_generation(artifacts: dict[str, str], tmp_path: Path) -> None:
    words = [
        "--num=32",
        "--shard-size=32",
        "--dtype=float32",
        "--device=cpu",
        "--max-new-tokens=96",
        "--variants",
        "raw",
        "raw-in-process",
        "stage",
        "--profile",
    ]
    variants = result_of("generation", tmp_path / "result.json", f"--model={artifacts['base']}/model", *words)
    assert variants["texts"] == variants["tokens"] == {"raw", "raw-in-process", "stage"}
    profile = json.loads((tmp_path / "result.json").read_text())["details"]["raw-in-process"]
    assert sum(profile["parts"].values()) == pytest.approx(2 * profile["parts"]["step_ms"])
    assert profile["parts"]["schedule"] > 0 and profile["kernels"]["kernels"]


def test_orchestration(tmp_path: Path) -> None:
    words = ["--num=20", "--num-peer=4", "--repeats=1", "--seeds=1"]
    variants = result_of("orchestration", tmp_path / "result.json", *words)
    assert variants["artifact"] == {"ours", "tune", "tune-reusing"}
    assert variants["plan, 54 cells"] == variants["--help"] == {"ours"}


def test_stages(tmp_path: Path) -> None:
    words = ["seeds=0", "starting_sizes=0", "training_sizes=60", "kinds=original"]
    variants = result_of("stages", tmp_path / "result.json", "demo", "--parameters", *words)
    built = {"sources", "base_model", "starting_point", "training_set", "task_model", "evaluation"}
    assert variants == {name: {"alone"} for name in (*built, "start", "in all")}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["details"]["num_built"] == result["details"]["num_steps"] > 5


def test_finetunings(tmp_path: Path) -> None:
    variants = result_of("finetunings", tmp_path / "result.json", "--num=2", "--num-peer=1", "--size=60", "--peer-part=0.5")
    # The CPU's seconds of half of the items are not those of all.
    assert variants == {"task model": {"ours", "tune"}}
    ours, tune = (json.loads((tmp_path / "result.json").read_text())["details"]["runs"][name][0] for name in ("ours", "tune"))
    assert (ours["num"], tune["num"]) == (2, 1)
    # What half of the items took is reckoned for all.
    assert tune["task_model_s"] == pytest.approx(tune["total_s"] + tune["evaluate_s"])
    assert ours["task_model_s"] == ours["total_s"] / 2
    assert ours["task_model_cpu_s"] > 1 and tune["task_model_cpu_s"] > tune["train_s"] / 2
    # They differ in the adapter's first draw and in dropout alone.
    assert ours["train_loss"] == pytest.approx(tune["train_loss"], abs=0.02) and len(ours["train_loss"]) == 1
    for name in ("template_test/accuracy", "template_probe/accuracy"):
        assert 0 < ours[name][0] < 1 and 0 < tune[name][0] < 1


def test_audit(tmp_path: Path) -> None:
    words = ["--rows=3000", "--reference-rows=600", "--repeats=1", "--variants", "ours"]
    variants = result_of("audit", tmp_path / "result.json", *words)
    names = ("audit", "audit, CPU", "memory", "near copies", "near copies, CPU")
    assert variants == {name: {"ours"} for name in names}
    details = json.loads((tmp_path / "result.json").read_text())["details"]
    assert details["audits"]["ours"][0]["copies"]["exact"] >= details["planted"]["exact"] > 0
    assert details["audits"]["ours"][0]["peak_mb"] > 50


def test_precision(artifacts: dict[str, str], tmp_path: Path) -> None:
    words = ["--repeats=2", "--num=96", "--num-evaluation=120", "--num-untrained=60", "--rank=4", "--learning-rate=3e-3"]
    sets = ["--general=template_test", "--blindspot=template_probe", f"--work={tmp_path / 'work'}", "--device=cpu"]
    places = [f"--model={artifacts['base']}/model", f"--sources={artifacts['sources']}"]
    variants = result_of("precision", tmp_path / "result.json", *places, *words, *sets)
    of_others = {"nf4_double", "fp8"}
    assert variants == dict.fromkeys(("logits, untrained", "logits, finetuned", "loss"), of_others) | dict.fromkeys(
        ("accuracy", "AUC"), of_others | {"bfloat16"}
    )
    joined = result_of("precision", tmp_path / "joined.json", f"--join={tmp_path / 'work'}")
    assert joined == variants
    first, second = (json.loads((tmp_path / name).read_text())["details"] for name in ("result.json", "joined.json"))
    assert first == second
    assert first["differences"]["logits, finetuned"]["fp8"]["mean"] > 0
    assert first["ratios"]["logits, untrained"]["fp8/nf4_double"]["interval"][1] < 1
