"""The page that is made from results."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import Figure, Limits, Part, Work, describe, make_parser
from benchmarks.page import PAGE, RESULTS, read_result, render, work_of
from pipelines.errors import UserError

H200 = {"gpus": ["NVIDIA H200, 143771 MiB"] * 2, "num_cpus": 32, "cpu": "Xeon", "memory_gib": 251.8}
SETTINGS = {
    "task_model": {
        "base": "base7", "method": "lora", "num": 512, "batch_size": 2, "together": 1, "tokens": 4_096,
        "share_prefix": True,
        "evaluation_sets": ["mnli_matched", "hans"],
    },
    "generation": {"model": "llama", "dtype": "bfloat16", "num": 8_192, "max_new_tokens": 58, "max_num_seqs": 0},
    "orchestration": {"num": 600, "concurrent": 2},
    "stages": {"experiment": "mini", "parameters": ["model=smollm2.gguf", "seeds=0,1,2"]},
    "finetunings": {"model": "smollm2.gguf", "size": 1_800, "num": 8},
    "adapters": {"rank": 64},
    "decode_attention": {"tokens": 58, "max_num_seqs": 1_024},
}  # fmt: skip


def result_of(benchmark: str, figure: Figure, date: str = "2026-01-01T00:00:00+00:00", **settings: Any) -> dict[str, Any]:
    parser = make_parser("", repeats=1)
    result = describe(benchmark, parser, parser.parse_args([]), [figure])
    arguments = SETTINGS[benchmark] | settings
    return result | {"date": date, "hardware": H200, "versions": {"torch": "2"}, "arguments": arguments}


def test_a_section_has_medians_ratios_fractions_and_targets() -> None:
    parser = make_parser("", repeats=1)
    figures = [
        Figure(
            "training", "examples/s", {"ours": [300, 340], "peer": [80]}, peer="peer", work=Work((Part("model", 1e12),), "all")
        ),
        Figure("artifact", "s", {"ours": [0.25], "slow": [3.0]}, peer="tune", lower_is_better=True, target=1),
        Figure("plan", "s", {"ours": [2.5]}, lower_is_better=True, target=2),
    ]
    arguments = parser.parse_args(["--note", "two cores"])
    result = describe("task_model", parser, arguments, figures, limits=Limits("g", 1e15, 1e12, "the maker"))
    result |= {"date": "2026-01-02T00:00:00", "versions": {"torch": "2"}, "arguments": SETTINGS["task_model"], "hardware": H200}
    page = render({"task_model-a": result})
    assert "### task_model-a\n\nTask model, 2026-01-02: [task_model-a.json](../benchmarks/results/task_model-a.json)" in page
    assert "2 × NVIDIA H200, 143771 MiB; 32 CPU cores (Xeon), 251.8 GiB. Two cores. Commit" in page
    assert "| training | ours | 320 examples/s (300 to 340) | 4.00 | 32% |  |" in page
    assert "| training | peer (peer) | 80 examples/s |  | 8% |  |" in page
    assert "| artifact | ours | 0.25 s |  |  | 1 s: met |" in page
    assert "| artifact | slow | 3 s |  |  |  |" in page
    assert "| plan | ours | 2.5 s |  |  | 2 s: missed |" in page
    cut_off = render({"task_model-a": result | {"cut_off": "cut off by SIGTERM after 9 s, in ours, run 1 of 1"}})
    assert "Two cores. Cut off by SIGTERM after 9 s, in ours, run 1 of 1. Commit" in " ".join(cut_off.split())
    assert "the limit is 1,000 examples/s, at 1000 TFLOP/s and 1 TB/s (the maker)" in " ".join(page.split())


def test_what_the_same_work_is() -> None:
    def words(benchmark: str, figure: str = "", variant: str = "ours", **settings: Any) -> tuple[str, str]:
        return work_of({"benchmark": benchmark, "hardware": H200, "arguments": SETTINGS[benchmark] | settings}, figure, variant)

    training = words("task_model", "training")
    assert training == ("Task model, base7, lora, NVIDIA H200", "batches of 2, one alone, passes of 4,096 tokens")
    # How long is measured, and how many are trained at once where several are, is not the work.
    assert words("task_model", "training", num=8_192) == training
    assert words("task_model", "training", together=8) == words("task_model", "training", together=36) != training
    others = {
        words("task_model", "training", batch_size=32),
        words("task_model", "training", method="full"),
        words("task_model", "training", base="other"),
        words("task_model", "training", tokens=8_192),
        words("task_model", "training", together=8),
        words("task_model", "training", share_prefix=False),
        words("task_model", "training", "ours-gpus", together=8),
        words("task_model", "evaluation"),
    }
    assert len(others) == 8 and training not in others
    # An evaluation is the same however the model was trained.
    evaluation = words("task_model", "evaluation")
    assert evaluation == ("Task model, base7, lora, NVIDIA H200", "mnli_matched and hans")
    assert (
        words("task_model", "evaluation", batch_size=32)
        == evaluation
        != words("task_model", "evaluation", evaluation_sets=["hans"])
    )

    generation = words("generation", "texts", "stage")
    assert generation == ("Generation, llama, bfloat16, up to 58 tokens a text, NVIDIA H200", "the stage's settings")
    assert words("generation", "texts", "stage", num=24_576) == generation
    assert words("generation", "texts", "stage-gpus") == (generation[0], "2 GPUs")
    assert words("generation", "texts", "stage", max_num_seqs=512) == (generation[0], "512 sequences at a time")
    assert words("generation", "texts", "stage", max_new_tokens=128) != generation

    assert words("finetunings", num=4) == ("Finetunings, smollm2.gguf, NVIDIA H200", "each of 1,800 examples")
    assert words("finetunings", model=None)[0] == "Finetunings, a tiny Llama, NVIDIA H200"
    assert words("stages") == ("Stages, mini, NVIDIA H200", "model=smollm2.gguf, seeds=0,1,2")
    assert words("orchestration") == ("Orchestration, NVIDIA H200", "2 at a time")
    assert words("adapters", variant="ours_24") == ("Adapters, NVIDIA H200", "rank 64, adapters: 24")
    assert words("decode_attention")[1] == "58 tokens a text, 1,024 sequences at a time"
    on_cpu = {"benchmark": "orchestration", "hardware": H200 | {"gpus": []}, "arguments": SETTINGS["orchestration"]}
    assert work_of(on_cpu, "artifact", "ours")[0] == "Orchestration, 32 cores of Xeon"


def test_the_newest_figure_leads_and_older_runs_and_parts_are_left_out() -> None:
    def training(rates: dict[str, list[float]]) -> Figure:
        return Figure("training", "examples/s", rates, peer="peer", target=250)

    results = {
        "task_model-old": result_of("task_model", training({"ours": [200], "peer": [50]}), "2026-01-01", together=30),
        "task_model-beside": result_of("task_model", training({"ours": [240], "peer": [60]}), "2026-01-02", together=32),
        "task_model-new": result_of("task_model", training({"ours": [300]}), "2026-01-03", together=36),
        "generation-part": result_of("generation", Figure("texts", "texts/s", {"engine": [9]}), "2026-01-04"),
        "adapters-new": result_of(
            "adapters", Figure("a layer", "tokens/s", {"ours_24": [8], "peft": [4]}, peer="peft"), "2026-01-05"
        ),
    }
    leading, _, runs = render(results).partition("## The runs")
    assert (
        "| training | batches of 2, several at once, passes of 4,096 tokens | 300 examples/s, 36 at once | 250 examples/s: met "
        "| [2026-01-03][2] | 4.00 times (240; peer 60), [2026-01-02][3] |"
    ) in leading
    assert "| a layer | rank 64, adapters: 24 | 8 tokens/s |  | [2026-01-05][1] | 2.00 times (8; peft 4), same run |" in leading
    assert leading.count("| training |") == 1 and "texts" not in leading.partition("## ")[2]
    assert "[1]: #adapters-new\n[2]: #task_model-new\n[3]: #task_model-beside\n" in leading
    order = [runs.index(f"### {name}\n") for name in ("adapters-new", "task_model-new", "task_model-beside")]
    assert order == sorted(order) and runs.count("### ") == 3


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"arguments": {}}))
    with pytest.raises(UserError, match=r"old\.json is not a result of format 1"):
        read_result(path)


def test_the_page_is_up_to_date() -> None:
    results = {path.stem: read_result(path) for path in sorted(RESULTS.glob("*.json"))}
    assert PAGE.read_text() == render(results), "run python -m benchmarks.page"
