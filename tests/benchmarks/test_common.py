"""FLOPs by hand, limits, ratios and the form of a result."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.common import (
    FORWARD,
    FROZEN,
    TRAINED,
    Figure,
    Limits,
    Part,
    Work,
    command_line,
    decoding_work,
    describe,
    describe_figure,
    limits_of_gpu,
    make_parser,
    model_flops,
    num_layer_weights,
    roofline,
    useful_tokens,
)
from benchmarks.page import RESULTS
from sweep.plan.model_shape import ModelShape

TINY = ModelShape(
    hidden_size=4,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_size=2,
    intermediate_size=6,
    vocabulary_size=10,
    is_tied=False,
)
LLAMA_2_7B = ModelShape(
    hidden_size=4_096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_size=128,
    intermediate_size=11_008,
    vocabulary_size=32_000,
    is_tied=False,
)
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SCHEMA = json.loads((Path(__file__).parents[2] / "benchmarks" / "schema.json").read_text())


def test_flops_of_a_tiny_model() -> None:
    # A layer: q 16, k 8, v 8, o 16, gate, up and down 24 each.
    assert num_layer_weights(TINY) == 2 * 120
    # Sequences of 3 and 1 tokens attend to 1 + 2 + 3 and to 1.
    assert useful_tokens([3, 1]) == (4, 7)
    # Projections 2 × 240 × 4; attention 4 FLOPs × 2 layers × 4 channels × 7 pairs.
    assert model_flops(TINY, 4, 7, per_weight=FORWARD) == 1_920 + 224
    assert model_flops(TINY, 4, 7, per_weight=FROZEN) == 2 * 1_920 + 3 * 224
    assert model_flops(TINY, 4, 7, per_weight=TRAINED) == 3 * 1_920 + 3 * 224
    # Rank 1 adds inputs + outputs of each projection: q 8, k 6, v 6, o 8, gate, up and down 10 each; 58 a layer.
    lora: dict[str, Any] = {"lora_rank": 1, "lora_targets": ALL}
    assert model_flops(TINY, 4, 7, per_weight=FROZEN, **lora) == 2 * 1_920 + 3 * 224 + 6 * 116 * 4
    assert model_flops(TINY, 4, 7, per_weight=FORWARD, **lora) == 1_920 + 224 + 2 * 116 * 4


def test_a_common_beginning_counts_once_a_batch() -> None:
    # Three sequences that share 2 tokens: 2 of their own each. Tokens 3 and 4 attend to 3 and 4, the beginning's to 1 and 2.
    assert useful_tokens([4, 4, 4], prefix=2, num_batches=1) == (2 + 3 * 2, 3 + 3 * 7)
    assert useful_tokens([4, 4, 4], prefix=2, num_batches=2) == (2 * 2 + 3 * 2, 2 * 3 + 3 * 7)
    assert useful_tokens([4, 4, 4], prefix=2, num_batches=3) == useful_tokens([4, 4, 4])


def test_flops_of_llama_2_7b() -> None:
    # 32 layers of four projections of 4,096² and three of 4,096 × 11,008.
    assert num_layer_weights(LLAMA_2_7B) == 6_476_005_376
    # An example of 77 tokens, trained with rank 64 on all seven: 159,907,840 weights of adapters.
    tokens, pairs = useful_tokens([77])
    assert (tokens, pairs) == (77, 3_003)
    flops = model_flops(LLAMA_2_7B, tokens, pairs, per_weight=FROZEN, lora_rank=64, lora_targets=ALL)
    assert flops == 4 * 6_476_005_376 * 77 + 12 * 32 * 4_096 * 3_003 + 6 * 159_907_840 * 77
    # 1.995 + 0.005 + 0.074 TFLOP: at 989 TFLOP/s no more than 477 such examples a second.
    assert 989e12 / flops == pytest.approx(477.0, abs=0.1)


def test_decoding_is_bound_by_flops_in_its_products_and_by_bytes_in_attention() -> None:
    work = decoding_work(LLAMA_2_7B, prompt=18, new_tokens=58, batch_size=1_024)
    products, attention = work.parts
    assert products.flops == 2 * (6_476_005_376 + 32_000 * 4_096)
    assert products.bytes == pytest.approx(2 * 6_607_077_376 / 1_024)
    # Keys and values of 47.5 tokens on average, 2 bytes each, 32 layers × 4,096 channels: 24.9 MB a token.
    assert attention.bytes == 47.5 * 2 * 2 * 32 * 4_096
    described = roofline(work, Limits("H200", 989e12, 4.8e12, "the maker"))
    assert [part["bound"] for part in described["parts"]] == ["bf16 FLOP/s", "memory bytes/s"]
    assert described["limit"] == pytest.approx(1 / (products.flops / 989e12 + attention.bytes / 4.8e12))
    # One text at a time, the weights' bytes bound the products as well.
    alone = roofline(decoding_work(LLAMA_2_7B, prompt=18, new_tokens=58, batch_size=1), Limits("H200", 989e12, 4.8e12, ""))
    assert [part["bound"] for part in alone["parts"]] == ["memory bytes/s", "memory bytes/s"]


def test_limits_are_of_the_very_gpu_or_none() -> None:
    h100 = limits_of_gpu("NVIDIA H100 80GB HBM3")
    assert h100 is not None and (h100.flop_per_s, h100.byte_per_s) == (989e12, 3.35e12)
    assert limits_of_gpu("NVIDIA H100 PCIe") is None


def test_ratios_are_above_one_where_ours_is_better() -> None:
    fast = describe_figure(Figure("rate", "examples/s", {"ours": [30, 10, 20], "peer": [5]}, peer="peer"), None)
    assert fast["variants"]["ours"]["median"] == 20 and fast["variants"]["ours"]["ratio"] == 4
    quick = describe_figure(Figure("start", "s", {"ours": [2], "peer": [5]}, peer="peer", lower_is_better=True), None)
    assert quick["variants"]["ours"]["ratio"] == 2.5 and quick["variants"]["peer"]["ratio"] == 1
    alone = describe_figure(Figure("start", "s", {"ours": [2]}, peer="peer"), None)
    assert alone["variants"]["ours"]["ratio"] is None


def test_the_fraction_is_of_the_limit() -> None:
    work = Work((Part("model", 2e12, 0),), "all")
    figure = Figure("rate", "examples/s", {"ours": [100]}, work=work)
    variant = describe_figure(figure, Limits("g", 1e15, 1e12, "it"))["variants"]["ours"]
    assert variant["fraction_of_limit"] == pytest.approx(0.2)
    assert describe_figure(figure, None)["variants"]["ours"]["fraction_of_limit"] is None


def test_a_result_fits_the_schema_and_names_no_folder(tmp_path: Path) -> None:
    parser = make_parser("", repeats=2)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1])
    words = [
        "--model",
        str(tmp_path / "llama"),
        "--sizes",
        "2",
        "3",
        "--note",
        "two cores",
        "--output",
        str(tmp_path / "o.json"),
    ]
    arguments = parser.parse_args(words)
    figure = Figure("rate", "examples/s", {"ours": [1.0]}, peer="peer", work=Work((Part("model", 1.0),), "all"))
    for limits in (None, Limits("g", 1e15, 1e12, "it")):
        result = describe("task_model", parser, arguments, [figure], limits=limits)
        jsonschema.validate(result, SCHEMA)
    assert result["command"] == "python -m benchmarks.task_model --model llama --sizes 2 3"
    assert str(tmp_path) not in json.dumps(result)
    del result["figures"][0]["variants"]["ours"]["values"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(result, SCHEMA)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_that_are_kept_fit_the_schema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)


def test_the_command_says_no_where_an_option_was_said_no_to() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--share-prefix", action=argparse.BooleanOptionalAction)
    parser.add_argument("--num", type=int, default=3)
    for given, words in (([], ""), (["--share-prefix"], " --share-prefix"), (["--no-share-prefix", "--num", "4"], None)):
        wanted = " --no-share-prefix --num 4" if words is None else words
        assert command_line("task_model", parser, parser.parse_args(given)) == f"python -m benchmarks.task_model{wanted}"


def test_the_command_has_a_part_that_is_named_by_its_place() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--num", type=int, default=3)
    arguments = parser.parse_args(["driver", "--num", "4"])
    assert command_line("scale", parser, arguments) == "python -m benchmarks.scale driver --num 4"


STUB = """
import sys
import time
from functools import partial
from pathlib import Path
from benchmarks.common import Figure, alternately, answer, finish, in_own_process, keep, make_parser, parse, values_of

def measure(folder):
    began = folder / "began"
    began.write_text(began.read_text() + "." if began.exists() else ".")
    keep({"start_s": 2.0})
    if len(began.read_text()) == 3:
        print("hangs", flush=True)
        time.sleep(60)
    return {"rate": 7.0}

parser = make_parser("", repeats=9)
parser.add_argument("--folder", type=Path)
parser.add_argument("--only")
arguments = parse(parser)
if arguments.only:
    answer(measure(arguments.folder))
    sys.exit()
apart = partial(in_own_process, "stub", ["--only=apart", f"--folder={arguments.folder}"])
results = alternately({"here": partial(measure, arguments.folder), "apart": apart}, arguments.repeats)
figures = [Figure(name, "s", values_of(results, name)) for name in ("start_s", "rate", "never")]
finish(parser, arguments, figures)
"""


@pytest.mark.parametrize(
    ("ended", "is_apart"),
    [
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
        (signal.SIGINT, True),
        pytest.param("its limit", True, marks=pytest.mark.slow),
    ],
)
def test_what_a_benchmark_that_is_cut_off_has_measured_is_written(tmp_path: Path, ended: Any, is_apart: bool) -> None:
    """It hangs in its third measurement, which is the second of one variant; in the other's own process where that is first."""
    variants = '{"here": partial(measure, arguments.folder), "apart": apart}'
    turned = '{"apart": apart, "here": partial(measure, arguments.folder)}'
    assert variants in STUB
    (tmp_path / "stub.py").write_text(STUB.replace(variants, turned) if is_apart else STUB)
    output = tmp_path / "result.json"
    words = ["-m", "stub", f"--folder={tmp_path}", f"--output={output}", *(["--limit=8"] if ended == "its limit" else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    with subprocess.Popen(
        [sys.executable, *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "hangs\n"
        if ended != "its limit":
            process.send_signal(ended)
            # As `timeout` does.
            process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    result = json.loads(output.read_text())
    jsonschema.validate(result | {"benchmark": "audit"}, SCHEMA)
    first, second = ("apart", "here") if is_apart else ("here", "apart")
    values = {
        figure["name"]: {name: variant["values"] for name, variant in figure["variants"].items()}
        for figure in result["figures"]
    }
    # What was measured in the turn that was cut off stays, too.
    assert values == {"rate": {first: [7], second: [7]}, "start_s": {first: [2, 2], second: [2]}}
    name = ended if isinstance(ended, str) else ended.name
    assert result["cut_off"].startswith(f"cut off by {name} after ") and f"in {first}, run 2 of 9" in result["cut_off"]
    assert result["cut_off"] in said and f"s left] {second}, run 1 of 9" not in said
    assert ("s left; " if name == "its limit" else "s left] ") in said and f"] {first}, run 2 of 9" in said
    assert "--limit" not in result["command"] and "measured: rate 7" in said


def test_a_benchmark_that_is_cut_off_before_it_has_measured_anything_says_so(tmp_path: Path) -> None:
    (tmp_path / "stub.py").write_text(STUB.replace("keep({", "time.sleep(60); keep({"))
    words = ["-m", "stub", f"--folder={tmp_path}", f"--output={tmp_path / 'result.json'}", "--limit=0.01"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, *words], env=environment, text=True, capture_output=True, timeout=30)
    assert done.returncode == 1 and "nothing was measured" in done.stderr and "cut off by its limit" in done.stderr
    assert not (tmp_path / "result.json").exists()
    assert "more than 0" in subprocess.run(
        [sys.executable, *words[:2], "--limit=0"], env=environment, text=True, capture_output=True, timeout=30
    ).stderr  # fmt: skip
