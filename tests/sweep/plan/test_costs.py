"""The cost of a study: all expected numbers are worked out by hand, from a table of round figures."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from pipelines.data.challenge_sets import unknown_challenge_files
from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig, ScratchModelConfig
from pipelines.finetune.generator import GeneratorConfig
from pipelines.finetune.recipe import LLAMA_PROJECTIONS, FinetuneConfig
from pipelines.generate.config import GenerationConfig
from pipelines.identity import FileHash
from pipelines.models.gguf_files import GgufHeader
from pipelines.resources import Resources
from sweep.plan.costs import Estimate, Setting, StepCost, estimate_costs, lane_seconds, rates, replication, total, unmeasured
from sweep.plan.model_shape import ModelShape, settings_of_gguf
from sweep.plan.throughputs import (
    FLOPS_PER_PARAMETER,
    TABLE_FILE,
    Constant,
    CostTable,
    Gpu,
    NoEstimate,
    Rate,
    Throughput,
    by_data_sheet,
    read_table,
)
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid

LLAMA = {
    "hidden_size": 4_096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
}
PARAMETERS = 6_738_415_616
ADAPTER = 159_907_840

FAST = Gpu("fast", bf16_tflops=1_000, memory_tb_per_s=4, price=10, spot_price=4, source="made up")
SLOW = Gpu("slow", bf16_tflops=500, memory_tb_per_s=1, price=3, spot_price=1, source="made up")


def row(work: str, examples_per_s: float, tokens: float, batch_size: int = 0, parameters: int = PARAMETERS) -> Throughput:
    return Throughput("fast", work, f"{parameters}", parameters, examples_per_s, tokens, "made up", batch_size)


TABLE = CostTable(
    gpus={"fast": FAST, "slow": SLOW},
    throughputs=(
        row("finetune_lora", 10, 100, batch_size=2),  # 0.2 s a step
        row("finetune_lora", 25, 100, batch_size=10),  # 0.4 s a step
        row("generate", 500, 50),
        row("evaluate", 200, 100),
    ),
    constants={
        name: Constant(name, value, "", "made up")
        for name, value in {
            "setup.finetune": 100,
            "setup.generate": 50,
            "setup.evaluate": 10,
            "begin.finetune_lora": 0,
            "begin.finetune_full": 0,
            "seconds.sources": 1,
            "seconds.base_model": 2,
            "seconds.starting_set": 3,
            "seconds.training_set": 4,
            "seconds.starting_point": 5,
            "tokens.classifier": 100,
            "tokens.classifier_hans": 50,
            "tokens.template": 40,
            "tokens.generator_text": 100,
            "tokens.generated": 50,
            "tokens.marker_rest": 10,
            "tokens.plain": 200,
            "yield": 0.5,
            "bytes.examples": 100,
            "bytes.pool": 10,
            "bytes.logits": 2,
        }.items()
    },
)


def estimate(experiment: Experiment, gpu: Gpu = FAST, table: CostTable = TABLE) -> Estimate:
    return estimate_costs(build_grid(experiment), table, gpu, settings=LLAMA)


def of_stage(found: Estimate, stage: str) -> list[StepCost]:
    return [one for one in found.steps if one.step.stage == stage]


def test_the_plan_of_the_paper(llama: Experiment) -> None:
    found = estimate(llama)
    # Steps, examples read or written, GPU-seconds: setup of each step and examples over the rate.
    expected = {
        "generator": (1, 391_722, 100 + 391_722 / 20),  # batch 6: 0.3 s a step, between 0.2 and 0.4
        "synthetic_pool": (1, 2 * 1_819_813, 50 + 2 * 1_819_813 / 500),  # half of the texts parse
        "starting_point": (6, 526_722, 5 * 100 + 526_722 / 10),  # the sixth is untrained
        "task_model": (54, 18 * 127_140, 54 * 100 + 18 * 127_140 / 10),
        # 19,647 examples of 100 tokens and 30,000 of 50, at 20,000 tokens a second.
        "evaluation": (60, 60 * 49_647, 60 * (10 + 3_464_700 / 20_000)),
    }
    for stage, (num_steps, num_examples, gpu_seconds) in expected.items():
        sums = total(of_stage(found, stage))
        assert (sums.num_steps, sums.num_examples) == (num_steps, num_examples), stage
        assert sums.gpu_hours == pytest.approx(gpu_seconds / 3600), stage
    assert len(of_stage(found, "training_set")) == 9
    assert total(found.steps).gpu_hours == pytest.approx(sum(seconds for _, _, seconds in expected.values()) / 3600)
    assert total(of_stage(found, "evaluation")).num_tokens == 60 * 3_464_700
    assert found.assumptions == ("391,722 training rows, the most there can be: the data is not prepared yet",)


def test_a_judgement_reads_the_pool_and_the_gold_sets_as_an_evaluation_would(llama: Experiment) -> None:
    own = PretrainedModelConfig((FileHash("model.safetensors", "1" * 64),), path="nowhere")
    for judge in (5_000, own):
        found = estimate(dataclasses.replace(llama, judge=judge))
        (judgement,) = of_stage(found, "judgement")
        assert judgement.work is not None and judgement.work.num_examples == 1_819_813 + 750 + 9_815
        assert judgement.gpu_seconds == pytest.approx(10 + 100 * 1_830_378 / 20_000)
        assert judgement.num_bytes == 2 * 1_830_378
        assert found.num_parameters == estimate(llama).num_parameters
        (evaluation, *_) = of_stage(found, "evaluation")
        assert judgement.memory_bytes == evaluation.memory_bytes > 0


@pytest.mark.parametrize(
    ("sets", "num_computed"),
    [
        (("mnli_matched", "mnli_mismatched", "hans", "mnli_hard"), 9_815 + 9_832 + 30_000),
        # What a set repeats of those that are not evaluated with it, it computes itself, whatever the order.
        (("mnli_hard", "mnli_matched", "hans"), 9_815 + 30_000 + 9_832),
        (("hans", "mnli_hard", "med"), 30_000 + 19_647 + 5_382),
    ],
)
def test_rows_that_stand_in_two_sets_of_an_evaluation_are_computed_once_and_kept_twice(
    sets: tuple[str, ...], num_computed: int, llama: Experiment
) -> None:
    challenges = tuple(unknown_challenge_files(name) for name in ("mnli_hard", "med"))
    study = dataclasses.replace(
        llama,
        sources=dataclasses.replace(llama.sources, challenges=challenges),
        evaluation=dataclasses.replace(llama.evaluation, sets=sets),
        general_set=sets[0] if sets[0] != "hans" else "mnli_hard",
    )
    (one, *_) = of_stage(estimate(study), "evaluation")
    assert one.work is not None and one.work.num_examples == num_computed
    assert one.work.num_tokens == 100 * num_computed - 50 * 30_000
    counts = study.sources.counts("")
    assert one.num_bytes == 2 * sum(counts[f"{name}/num_examples"] for name in sets)


def test_texts_that_stop_early_have_fewer_tokens(llama: Experiment) -> None:
    early = dataclasses.replace(llama, generation=dataclasses.replace(llama.generation, stop_early=True))
    (pool,) = of_stage(estimate(early), "synthetic_pool")
    assert pool.seconds == pytest.approx(50 + 2 * 1_819_813 / 500 * 40 / 50)


def test_five_seeds_share_generator_and_pool(llama: Experiment) -> None:
    one, five = estimate(llama), estimate(dataclasses.replace(llama, seeds=(0, 1, 2, 3, 4)))
    for stage, num_steps in (
        ("generator", 1), ("synthetic_pool", 1), ("starting_point", 30), ("training_set", 45),
        ("task_model", 270), ("evaluation", 300),
    ):  # fmt: skip
        sums = total(of_stage(five, stage))
        assert sums.num_steps == num_steps
        times = 1 if num_steps == 1 else 5
        assert sums.gpu_hours == pytest.approx(times * total(of_stage(one, stage)).gpu_hours)


def test_what_one_more_generator_and_one_more_seed_cost(llama: Experiment) -> None:
    # Of the paper's plan above: the first two stages, and the other three, over one seed.
    generator_s = 100 + 391_722 / 20 + 50 + 2 * 1_819_813 / 500
    seed_s = 5 * 100 + 526_722 / 10 + 54 * 100 + 18 * 127_140 / 10 + 60 * (10 + 3_464_700 / 20_000)
    for seeds, generators in (((0,), 1), ((0, 1, 2, 3), 1), ((0, 1, 2, 3), 2)):
        several = dataclasses.replace(llama, seeds=seeds, generators=generators)
        found = estimate(several).steps
        more = replication(found)
        assert (more.generator * 3600, more.seed * 3600) == (pytest.approx(generator_s), pytest.approx(seed_s))
        assert total(found).gpu_hours == pytest.approx(generators * more.generator + len(seeds) * more.seed)
    alone = replication(estimate(dataclasses.replace(llama, kinds=("original",))).steps)
    assert alone.generator == 0 < alone.seed


def test_disk(llama: Experiment) -> None:
    found = estimate(llama)
    adapter, head = 2 * ADAPTER, 3 * 4_096 * 4
    for stage, num_bytes in (
        ("base_model", 2 * PARAMETERS),
        ("generator", 2 * PARAMETERS),
        ("synthetic_pool", 10 * 1_819_813),
        ("starting_set", 100 * 526_722),
        ("training_set", 3 * 100 * 127_140),
        ("starting_point", 5 * adapter + 6 * head),
        ("task_model", 54 * (adapter + head)),
        ("evaluation", 60 * 2 * 49_647),
    ):
        assert total(of_stage(found, stage)).num_bytes == num_bytes, stage
    # Twice what is trained, in bf16 and three times in fp32; the generator's embeddings and head are trained, too.
    assert of_stage(found, "generator")[0].checkpoint_bytes == 2 * 14 * (ADAPTER + 2 * 32_000 * 4_096)
    assert {one.checkpoint_bytes for one in of_stage(found, "task_model")} == {2 * 14 * ADAPTER}


def test_a_short_finetuning_writes_no_checkpoint(llama: Experiment) -> None:
    rare = dataclasses.replace(llama.task_model, checkpoint_every=9_010)
    checkpoints = {
        one.step.coordinates["size"]: one.checkpoint_bytes > 0
        for one in of_stage(estimate(dataclasses.replace(llama, task_model=rare)), "task_model")
    }
    assert checkpoints == {18_020: False, 36_040: True, 73_080: True}


def test_of_a_shared_trajectory_each_example_is_counted_once(llama: Experiment) -> None:
    recipe = FinetuneConfig(batch_size=10, schedule="warmup_stable_decay", cooldown_ratio=0.2)
    found = estimate(dataclasses.replace(llama, task_model=recipe, trajectories="shared"))
    # A fifth of each smaller size's steps.
    starts = {one.step.coordinates["starting_size"]: one.work for one in of_stage(found, "starting_point")}
    examples = {size: work.num_examples for size, work in starts.items() if work}
    assert examples == {5_000: 1_000, 10_000: 2_000, 20_000: 4_000, 100_000: 20_000, 391_722: 391_722}
    cells = {one.step.coordinates["size"]: one for one in of_stage(found, "task_model")}
    assert {size: one.work.num_examples for size, one in cells.items() if one.work} == {
        18_020: 3_610,  # 1,802 steps: ceil(360.4) of 10
        36_040: 7_210,  # 3,604 steps: ceil(720.8) of 10
        73_080: 73_080,
    }
    assert cells[36_040].gpu_seconds == pytest.approx(100 + 7_210 / 25)
    # A trunk of cells keeps two states of three fp32 numbers a parameter, that of the starting points four.
    adapter, head = 2 * ADAPTER, 3 * 4_096 * 4
    assert {size: one.num_bytes - adapter - head for size, one in cells.items()} == {
        18_020: 0, 36_040: 0, 73_080: 2 * 12 * ADAPTER,
    }  # fmt: skip
    assert total(of_stage(found, "starting_point")).num_bytes == 5 * adapter + 6 * head + 4 * 12 * ADAPTER


def test_an_adapter_on_full_weights_is_kept_with_them(llama: Experiment) -> None:
    both = dataclasses.replace(llama, task_model=FinetuneConfig(method="full"), cell=FinetuneConfig())
    found = {one.step.name: one.num_bytes for one in estimate(both).steps}
    body, head = 2 * (PARAMETERS - 32_000 * 4_096), 3 * 4_096 * 4
    assert found["starting_point/start5000-seed0"] == body + head
    assert found["task_model/start5000-original-18020-seed0"] == body + head + 2 * ADAPTER
    assert found["task_model/start0-original-18020-seed0"] == head + 2 * ADAPTER


def test_epochs_labels_and_remainders_count(llama: Experiment) -> None:
    changed = dataclasses.replace(
        llama,
        cell=dataclasses.replace(llama.task_model, epochs=2.5),
        generation=GenerationConfig(num_per_label=100),
        training_sizes=(100,),
        remainder="drop",
    )
    found = estimate(changed)
    assert {one.work.num_examples for one in of_stage(found, "task_model") if one.work} == {2.5 * 99}
    assert total(of_stage(found, "synthetic_pool")).num_examples == 2 * 300


@pytest.mark.parametrize(
    ("work", "batch_size", "gpu", "parameters", "tokens_per_s", "scaled"),
    [
        ("finetune_lora", 2, FAST, PARAMETERS, 1_000, ""),
        ("finetune_lora", 6, FAST, PARAMETERS, 6 / 0.3 * 100, "interpolated to batch 6"),
        ("finetune_lora", 1, FAST, PARAMETERS, 1 / 0.2 * 100, ""),
        ("finetune_lora", 64, FAST, PARAMETERS, 2_500, ""),
        ("finetune_lora", 2, SLOW, PARAMETERS, 500, "scaled from fast by bf16 peak"),
        ("generate", 0, SLOW, PARAMETERS, 25_000 / 4, "scaled from fast by memory bandwidth"),
        ("evaluate", 0, FAST, PARAMETERS // 2, 40_000, "by operations a token"),
        ("finetune_full", 2, FAST, PARAMETERS, 1_000 * 4 / 6, "scaled from finetune_lora"),
    ],
)
def test_a_rate_is_scaled_from_the_nearest_row(
    work: str, batch_size: float, gpu: Gpu, parameters: int, tokens_per_s: float, scaled: str
) -> None:
    rate = TABLE.rate(work, batch_size, gpu, parameters)
    assert rate.tokens_per_s == pytest.approx(tokens_per_s)
    assert scaled in rate.scaled and bool(scaled) == bool(rate.scaled)


def with_rows(*rows: Throughput) -> CostTable:
    return dataclasses.replace(TABLE, throughputs=(*TABLE.throughputs, *rows))


def test_a_size_is_told_by_the_same_gpu_if_it_was_measured_there() -> None:
    small = row("evaluate", 5_000, 100, parameters=10**8)
    measured = dataclasses.replace(row("evaluate", 70, 100), gpu="slow")
    table = with_rows(small, measured)
    assert table.rate("evaluate", 0, SLOW, PARAMETERS) == Rate(7_000, (measured,), "")
    # 250,000 of the other GPU's 500,000 tokens a second.
    between = table.rate("evaluate", 0, SLOW, round(math.sqrt(10**8 * PARAMETERS)))
    assert between.rows == (small, measured) and between.measured_on == "fast"
    assert between.tokens_per_s == pytest.approx(math.sqrt(250_000 * 7_000))
    note = "interpolated between 100000000 (100 M parameters) and 6738415616 (6,738 M parameters)"
    assert between.scaled == f"scaled from fast by bf16 peak (data sheets: 500 against 1000 TFLOP/s); {note}"


@pytest.mark.parametrize(
    ("parameters", "tokens_per_s", "note"),
    [
        (10**8, 90_000, ""),
        # What a model has without its biases.
        (10**8 - 10**4, 90_000, ""),
        # From 90,000 to 40,000 tokens a second over a hundred times the size: half of the way on scales of logarithms.
        (10**9, 60_000, "interpolated between 100000000 (100 M parameters) and 10000000000 (10,000 M parameters)"),
        (10**7, 135_000, "on the line through 100000000 (100 M parameters) and 10000000000 (10,000 M parameters)"),
        (2 * 10**10, 20_000, "scaled from 10000000000 (10,000 M parameters) by operations a token"),
    ],
)
def test_between_two_sizes_that_were_measured_a_rate_is_on_the_line_of_logarithms(
    parameters: int, tokens_per_s: float, note: str
) -> None:
    rows = (row("evaluate", 900, 100, parameters=10**8), row("evaluate", 400, 100, parameters=10**10))
    rate = dataclasses.replace(TABLE, throughputs=rows).rate("evaluate", 0, FAST, parameters)
    assert (rate.tokens_per_s, rate.scaled) == (pytest.approx(tokens_per_s), note)


def test_a_process_does_its_part_at_least_of_what_several_do_and_takes_its_part_of_the_gpu() -> None:
    alone, ten = row("generate", 500, 50), dataclasses.replace(row("generate", 3_000, 50, parameters=10**8), processes=10)
    table = dataclasses.replace(TABLE, throughputs=(ten,))
    rate = table.rate("generate", 0, FAST, 10**8)
    # 3,000 texts of ten processes.
    assert (rate.tokens_per_s, rate.load) == (15_000, pytest.approx(0.1))
    # A smaller model is as quick as a larger one: 25,000 of the 150,000 tokens a second that the GPU does in all.
    rate = dataclasses.replace(TABLE, throughputs=(alone, ten)).rate("generate", 0, FAST, 10**8)
    assert (rate.tokens_per_s, rate.load, rate.scaled) == (25_000, pytest.approx(1 / 6), "at least as quick as a larger model")
    assert dataclasses.replace(TABLE, throughputs=(alone, ten)).rate("generate", 0, FAST, PARAMETERS).load == 1
    # In all a model of twice the size does half as much, more than one process now; one of 20 times the size does less.
    table = dataclasses.replace(TABLE, throughputs=(ten,))
    larger = [table.rate("generate", 0, FAST, size) for size in (2 * 10**8, 20 * 10**8)]
    assert [(rate.tokens_per_s, rate.load) for rate in larger] == [(15_000, pytest.approx(0.2)), (pytest.approx(7_500), 1)]
    # Of finetunings, those at once in a process count as well: 0.2 s a step alone, so 10 of 40 examples a second.
    together = dataclasses.replace(row("finetune_lora", 40, 100, batch_size=2), together=3, processes=2)
    rate = with_rows(together).rate("finetune_lora", 2, FAST, PARAMETERS)
    assert (rate.tokens_per_s, rate.load) == (1_000, 0.25)


def test_of_a_size_that_was_measured_by_what_a_model_puts_out_other_rows_do_not_count(llama: Experiment) -> None:
    texts = dataclasses.replace(row("finetune_lora", 4, 100, batch_size=6), head="vocabulary")
    table = with_rows(texts)
    assert table.rate("finetune_lora", 6, FAST, PARAMETERS, head="vocabulary").rows == (texts,)
    assert table.rate("finetune_lora", 6, FAST, PARAMETERS, head="classes").tokens_per_s == pytest.approx(6 / 0.3 * 100)
    only_texts = dataclasses.replace(TABLE, throughputs=(texts,))
    assert only_texts.rate("finetune_lora", 6, FAST, PARAMETERS, head="classes").rows == (texts,)
    found = estimate(llama, table=table)
    assert of_stage(found, "generator")[0].seconds == pytest.approx(100 + 391_722 / 4)
    assert of_stage(found, "task_model")[0].rate == TABLE.rate("finetune_lora", 2, FAST, PARAMETERS)
    assert str(next(iter(rates(of_stage(found, "generator"))))) == "finetune_lora of vocabulary, batch 6, shared prefix"


def test_a_start_is_that_of_the_models_size(llama: Experiment) -> None:
    sizes = {
        f"setup.evaluate, {size}": Constant("setup.evaluate", value, "s", "made up", size)
        for size, value in ((10**6, 4), (10**10, 12))
    }
    others = {name: one for name, one in TABLE.constants.items() if name != "setup.evaluate"}
    table = dataclasses.replace(TABLE, constants=others | sizes)
    assert [table.constant("setup.evaluate", size) for size in (10**5, 10**6, 10**8, 10**10, 10**11)] == [4, 4, 8, 12, 12]
    assert table.constant("setup.finetune", 10**8) == 100
    assert of_stage(estimate(llama, table=table), "evaluation")[0].setup_s == pytest.approx(4 + 8 * math.log10(6738.415616) / 4)


def test_what_was_not_measured_with_a_base_in_fp8_is_reckoned_in_bfloat16_and_said_to_be() -> None:
    in_fp8 = dataclasses.replace(row("finetune_lora", 40, 100, batch_size=10), base_precision="fp8")
    table = dataclasses.replace(TABLE, throughputs=(*TABLE.throughputs, in_fp8))

    def rate(batch_size: int, precision: str) -> tuple[float, str]:
        found = table.rate("finetune_lora", batch_size, FAST, PARAMETERS, precision)
        return found.tokens_per_s, found.scaled

    assert rate(10, "fp8") == (4_000, "")
    assert rate(10, "bfloat16") == (2_500, "")
    reckoned = "not measured in fp8: in part or wholly as in bfloat16"
    assert rate(2, "fp8") == (1_000, reckoned)
    # Between 0.2 s in bfloat16 and 0.25 s in FP8.
    assert rate(6, "fp8") == (pytest.approx(6 / 0.225 * 100), f"interpolated to batch 6; {reckoned}")


def test_a_study_on_a_base_in_fp8_is_priced_by_its_rows(llama: Experiment) -> None:
    table = read_table()

    def found(quantization: str) -> dict[str, set[str]]:
        base_model = dataclasses.replace(llama.base_model, quantization=quantization)
        costs = estimate(dataclasses.replace(llama, base_model=base_model), table.gpu("h200"), table)
        return {
            stage: {
                f"{row.base_precision} {row.examples_per_s:g}"
                for cost in of_stage(costs, stage)
                if cost.rate
                for row in cost.rate.rows
            }
            for stage in ("task_model", "evaluation", "synthetic_pool")
        }

    # What writes texts is merged, and no base any more.
    pool = {"synthetic_pool": {"bfloat16 596"}}
    assert found("fp8") == {"task_model": {"fp8 139", "fp8 336"}, **pool, "evaluation": {"fp8 2293"}}
    in_bfloat16 = {"task_model": {"bfloat16 116", "bfloat16 254"}, **pool, "evaluation": {"bfloat16 1328"}}
    assert found("nf4") == found("none") == in_bfloat16


def test_workers_and_shares_of_a_gpu(llama: Experiment) -> None:
    four = {**llama.resources, "task_model": Resources(num_workers=4, gpus_per_worker=1)}
    wide = dataclasses.replace(llama, cell=dataclasses.replace(llama.task_model, batch_size=8), resources=four)
    cell = of_stage(estimate(wide), "task_model")[0]
    assert cell.work is not None and cell.work.batch_size == 2
    # Four GPUs at batch 2 each, and all four wait for the setup.
    assert cell.seconds == pytest.approx(100 + cell.work.num_examples / 40)
    assert cell.gpu_seconds == pytest.approx(4 * cell.seconds)
    half = {**llama.resources, "task_model": Resources(gpus_per_worker=0.5)}
    shared = of_stage(estimate(dataclasses.replace(llama, resources=half)), "task_model")[0]
    assert shared.work is not None
    # Alone it has the whole GPU. Beside another it takes twice as long, and is paid for as that.
    assert shared.seconds == pytest.approx(100 + shared.work.num_examples / 10)
    assert shared.gpu_seconds == pytest.approx((100 + shared.work.num_examples / 5) / 2)
    # A process that keeps a quarter of the GPU busy is not slowed by another.
    together = dataclasses.replace(row("finetune_lora", 40, 100, batch_size=2), processes=2)
    unhindered = of_stage(estimate(dataclasses.replace(llama, resources=half), table=with_rows(together)), "task_model")[0]
    assert unhindered.load == 0.5 and unhindered.gpu_seconds == pytest.approx(unhindered.seconds / 2)
    assert unhindered.seconds == pytest.approx(100 + shared.work.num_examples / 20)


def test_a_rate_is_of_rows_with_the_recipes_share_prefix_or_scaled_by_tokens_and_said_to_be(llama: Experiment) -> None:
    # 40 of 100 tokens begin all prompts: a batch of 2 computes them twice, or once. 200 tokens or 160, 0.8 times.
    whole = dataclasses.replace(row("finetune_lora", 9, 100, batch_size=2), share_prefix=False)
    in_fp8 = dataclasses.replace(row("finetune_lora", 12, 100, batch_size=2), base_precision="fp8")

    def with_rows(*rows: Throughput) -> CostTable:
        return dataclasses.replace(TABLE, throughputs=rows)

    measured, both = with_rows(*TABLE.throughputs, whole), with_rows(*TABLE.throughputs, whole, in_fp8)

    def rate(table: CostTable, batch_size: float, share_prefix: bool, precision: str = "bfloat16") -> tuple[float, str]:
        found = table.rate("finetune_lora", batch_size, FAST, PARAMETERS, precision, share_prefix)
        return pytest.approx(found.tokens_per_s), found.scaled

    note = "not measured without a shared prefix: scaled by the tokens of an example, {} times"
    assert rate(TABLE, 2, True) == (1_000, "")
    assert rate(TABLE, 2, False) == (800, note.format("0.80"))
    # Of a batch of 10: 1,000 tokens or 640.
    assert rate(TABLE, 10, False) == (2_500 * 0.64, note.format("0.64"))
    assert rate(measured, 2, False) == (900, "")
    assert rate(with_rows(whole), 2, True) == (900 / 0.8, note.replace("without", "with").format("1.25"))
    # With a base in FP8: of what was measured shared, or in bfloat16, the quicker stands in.
    assert rate(both, 2, False, "fp8") == (1_200 * 0.8, note.format("0.80"))
    slow = with_rows(whole, dataclasses.replace(in_fp8, examples_per_s=11))
    assert rate(slow, 2, False, "fp8") == (900, "not measured in fp8: in part or wholly as in bfloat16")
    # Other work has no such setting.
    assert TABLE.rate("evaluate", 0, FAST, PARAMETERS, share_prefix=False) == TABLE.rate("evaluate", 0, FAST, PARAMETERS)
    # A plan takes it from each recipe.
    plain = dataclasses.replace(llama, task_model=dataclasses.replace(llama.task_model, share_prefix=False))
    found = rates(estimate(plain, table=measured).steps)
    assert set(found) == {
        Setting("finetune_lora", 2, False), Setting("finetune_lora", 6, True), Setting("generate"), Setting("evaluate"),
    }  # fmt: skip
    assert found[Setting("finetune_lora", 2, False)].tokens_per_s == 900
    assert rates(estimate(llama, table=measured).steps)[Setting("finetune_lora", 2, True)].tokens_per_s == 1_000
    assert [str(setting) for setting in (Setting("evaluate"), Setting("finetune_lora", 2, False))] == [
        "evaluate", "finetune_lora, batch 2, no shared prefix",
    ]  # fmt: skip


def test_every_rate_of_the_papers_studies_names_whether_it_shares_the_prefix() -> None:
    text = TABLE_FILE.read_text()
    finetunings = [one for one in text.split("[[throughput]]") if 'work = "finetune' in one]
    assert finetunings and all("share_prefix = " in one for one in finetunings)


def in_lanes(experiment: Experiment, most: int) -> Experiment:
    resources = {stage: dataclasses.replace(one, max_group=most) for stage, one in experiment.resources.items()}
    return dataclasses.replace(experiment, resources=resources)


def test_a_lane_starts_once_and_its_finetunings_share_what_a_pass_costs(llama: Experiment) -> None:
    # Alone a step takes 0.2 s, five at once 0.4 s: 0.15 s whoever is in it, and 0.05 s for each.
    together = dataclasses.replace(row("finetune_lora", 25, 100, batch_size=2), together=5)
    table = dataclasses.replace(TABLE, throughputs=(*TABLE.throughputs, together))
    assert table.rate("finetune_lora", 2, FAST, PARAMETERS).shared == pytest.approx(0.75)
    # At batch 10 a step takes 0.4 s, of which the same 0.15 s are shared.
    assert table.rate("finetune_lora", 10, FAST, PARAMETERS).shared == pytest.approx(0.375)
    found = estimate(in_lanes(llama, 27), table=table)
    cells = of_stage(found, "task_model")
    small, large = (next(one for one in cells if one.step.coordinates["size"] == size) for size in (18_020, 73_080))
    # 9,010 and 36,540 steps.
    assert small.seconds == pytest.approx(100 + 9_010 * 0.2)
    assert lane_seconds([small, large, small]) == pytest.approx(100 + 36_540 * 0.15 + (2 * 9_010 + 36_540) * 0.05)
    # 27 at once: the 18 of 73,080 and half of the 18 of 36,040; the others of these follow their like, the 18 of 18,020 the
    # first that end: 9 after 36,040 and 9 after 73,080.
    lane_s = 100 + (36_540 + 9_010) * 0.15 + 18 * (36_540 + 18_020 + 9_010) * 0.05
    assert total(cells).gpu_hours == pytest.approx(lane_s / 3600)
    # The largest starting point is alone when the others have ended.
    starts = [one for one in of_stage(found, "starting_point") if one.work]
    num_steps = sum(one.work.num_examples for one in starts if one.work) / 2
    assert total(starts).gpu_hours == pytest.approx((100 + 391_722 / 2 * 0.15 + num_steps * 0.05) / 3600)
    # Sixty evaluations follow each other: only their start is shared.
    assert total(of_stage(found, "evaluation")).gpu_hours == pytest.approx((10 + 60 * 3_464_700 / 20_000) / 3600)
    # What several workers take on they train one after another.
    wide = {**llama.resources, "task_model": Resources(num_workers=2, gpus_per_worker=1, max_group=27)}
    assert {
        one.once_s for one in of_stage(estimate(dataclasses.replace(llama, resources=wide), table=table), "task_model")
    } == {0}


def test_examples_of_one_and_of_several_may_have_other_lengths() -> None:
    # One alone takes 0.2 s for two examples of 100 tokens, and 0.25 s for two of 125; five at once 0.65 s for ten of these.
    several = dataclasses.replace(row("finetune_lora", 10 / 0.65, 125, batch_size=2), together=5)
    rate = dataclasses.replace(TABLE, throughputs=(*TABLE.throughputs, several)).rate("finetune_lora", 2, FAST, PARAMETERS)
    # 0.15 s for whoever is there and 0.1 s for each.
    assert (rate.tokens_per_s, rate.shared) == (1_000, pytest.approx(0.15 / 0.25))
    # Between 0.25 s for two of 125 tokens and 0.4 s for ten of them.
    longer = dataclasses.replace(TABLE.throughputs[1], tokens_per_example=125)
    between = dataclasses.replace(TABLE, throughputs=(TABLE.throughputs[0], longer)).rate("finetune_lora", 6, FAST, PARAMETERS)
    assert between.tokens_per_s == pytest.approx(6 * 125 / 0.325)


def test_a_gpu_that_gains_nothing_from_company_shares_nothing(llama: Experiment) -> None:
    slow = dataclasses.replace(row("finetune_lora", 9, 100, batch_size=2), together=5)
    rate = dataclasses.replace(TABLE, throughputs=(*TABLE.throughputs, slow)).rate("finetune_lora", 2, FAST, PARAMETERS)
    assert (rate.shared, rate.tokens_per_s) == (0, 1_000)


def test_work_on_cpus_is_named_as_not_counted(llama: Experiment) -> None:
    resources = {stage: one for stage, one in llama.resources.items() if stage != "evaluation"}
    found = estimate(dataclasses.replace(llama, resources=resources))
    assert {one.gpu_seconds for one in of_stage(found, "evaluation")} == {0}
    assert any(note.startswith("60 steps compute on CPUs") for note in found.assumptions)


def test_a_pretrained_scratch_model_is_a_finetuning(llama: Experiment) -> None:
    scratch = ScratchModelConfig(pretraining=FinetuneConfig(epochs=2), pretraining_examples=1_000)
    resources = {**llama.resources, "base_model": Resources(gpus_per_worker=1)}
    work = of_stage(estimate(dataclasses.replace(llama, base_model=scratch, resources=resources)), "base_model")[0].work
    assert work is not None and (work.kind, work.num_examples, work.num_tokens) == ("finetune_lora", 2_000, 400_000)


def test_what_cannot_be_said_is_refused_with_its_reason(llama: Experiment) -> None:
    steps = build_grid(llama)
    with pytest.raises(NoEstimate, match="is not at hand"):
        estimate_costs(steps, TABLE, FAST)
    with pytest.raises(NoEstimate, match="no number for vocab_size"):
        estimate_costs(steps, TABLE, FAST, settings={**LLAMA, "vocab_size": None})
    with pytest.raises(NoEstimate, match="'hans'"):
        estimate_costs(steps, TABLE, FAST, settings=LLAMA, num_examples={"train": 9, "mnli_matched": 9, "mnli_mismatched": 9})
    with pytest.raises(NoEstimate, match="no step asks for a GPU"):
        estimate(dataclasses.replace(llama, resources={}))


def test_counts_of_prepared_data_take_the_place_of_assumed_ones(llama: Experiment) -> None:
    counts = {"train": 79_429, "mnli_matched": 10, "mnli_mismatched": 10, "hans": 10}
    found = estimate_costs(build_grid(llama), TABLE, FAST, settings=LLAMA, num_examples=counts)
    assert total(of_stage(found, "generator")).num_examples == 79_429
    assert total(of_stage(found, "evaluation")).num_examples == 60 * 30
    assert found.assumptions == ()


@pytest.mark.parametrize(
    ("changes", "parameters", "adapter"),
    [
        ({}, PARAMETERS, ADAPTER),
        # Published: TinyLlama-1.1B and SmolLM2-135M.
        ({"hidden_size": 2_048, "num_hidden_layers": 22, "num_key_value_heads": 4, "intermediate_size": 5_632},
         1_100_048_384, 50_462_720),
        ({"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
          "intermediate_size": 1_536, "vocab_size": 49_152, "tie_word_embeddings": True}, 134_515_008, 19_537_920),
    ],
)  # fmt: skip
def test_parameters_follow_from_the_shape(changes: dict, parameters: int, adapter: int) -> None:
    shape = ModelShape.of_settings({**LLAMA, **changes})
    assert shape.num_parameters == parameters
    assert shape.num_lora_parameters(64, LLAMA_PROJECTIONS) == adapter


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        # Published: Phi-3-mini; Pythia-1B; BERT-base without its pooler and its head for masked words.
        ({"model_type": "phi3", "hidden_size": 3_072, "intermediate_size": 8_192, "vocab_size": 32_064}, 3_821_079_552),
        ({"model_type": "gpt_neox", "hidden_size": 2_048, "num_hidden_layers": 16, "num_attention_heads": 8,
          "intermediate_size": 8_192, "vocab_size": 50_304}, 1_011_781_632),
        ({"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
          "intermediate_size": 3_072, "vocab_size": 30_522, "tie_word_embeddings": True}, 108_891_648),
    ],
)  # fmt: skip
def test_other_architectures_are_counted_but_for_biases_and_positions(settings: dict, parameters: int) -> None:
    assert ModelShape.of_settings({**LLAMA, **settings}).num_parameters == pytest.approx(parameters, rel=0.005)


def test_adapters_are_counted_on_the_layers_of_an_architecture() -> None:
    shape = ModelShape.of_settings({**LLAMA, "model_type": "bert", "hidden_size": 768, "intermediate_size": 3_072})
    # Queries, keys, values and what follows them: 768 each way; then to 3,072 and back.
    assert shape.num_lora_parameters(8, ("query", "key", "value", "dense")) == 32 * 8 * (4 * 1_536 + 2 * 3_840)
    assert shape.num_lora_parameters(8, ("query",)) == 32 * 8 * 1_536
    assert shape.num_lora_parameters(8, LLAMA_PROJECTIONS) == 0


def test_task_models_cost_what_their_own_base_does(llama: Experiment) -> None:
    settings = {**LLAMA, "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3_072}
    own = PretrainedModelConfig((FileHash("model.safetensors", "1" * 64),), path="bert", model_type="bert")
    study = dataclasses.replace(llama, task_model_base=own, task_model=FinetuneConfig(method="full"))
    # Rates of a full finetuning are reckoned from those of adapters.
    found = estimate_costs(build_grid(study), TABLE, FAST, settings=LLAMA, task_settings=settings)
    plain = estimate(llama)
    for stage in ("generator", "synthetic_pool"):
        (ours,), (theirs,) = of_stage(found, stage), of_stage(plain, stage)
        assert (ours.seconds, ours.num_bytes, ours.memory_bytes) == (theirs.seconds, theirs.num_bytes, theirs.memory_bytes)
    body = ModelShape.of_settings(settings).num_body_parameters
    (evaluation, *_) = of_stage(found, "evaluation")
    assert evaluation.memory_bytes == 2 * body
    assert {cost.num_bytes for cost in of_stage(found, "task_model")} == {3 * 768 * 4 + 2 * body}
    assert total(of_stage(found, "evaluation")).gpu_hours < total(of_stage(plain, "evaluation")).gpu_hours / 5
    assert found.num_parameters == plain.num_parameters
    with pytest.raises(NoEstimate, match=r"config\.json is not at hand"):
        estimate_costs(build_grid(study), TABLE, FAST, settings=LLAMA)


def test_prices_and_gpus() -> None:
    assert TABLE.gpu("slow", price=2.5) == dataclasses.replace(SLOW, price=2.5)
    with pytest.raises(UserError, match="'tpu' has no row; there are fast, slow"):
        TABLE.gpu("tpu")
    with pytest.raises(UserError, match="spot_price=-1"):
        TABLE.gpu("slow", spot_price=-1)


@pytest.mark.parametrize("gpu", ["h200", "h100", "a100", "l40s", "a10g", "l4", "rtx4090", "b200"])
def test_the_shipped_table_serves_the_paper(llama: Experiment, gpu: str) -> None:
    table = read_table()
    found = estimate(llama, table.gpu(gpu), table)
    note = "reckoned from the makers' data sheets: finetune_lora, generate, evaluate, from rates of h200"
    assert unmeasured(found.steps, found.gpu) == ("" if gpu == "h200" else f"not measured on {gpu}, {note}")
    assert {setting.work for setting in rates(found.steps)} == {"finetune_lora", "generate", "evaluate"}
    assert all(math.isfinite(one.seconds) and one.seconds > 0 and one.num_bytes > 0 for one in found.steps)


@pytest.mark.parametrize(
    ("work", "gpu", "tokens_per_s"),
    [
        # 1,328 examples of 77 tokens on an H200 of 989 TFLOP/s and 4.8 TB/s.
        ("evaluate", "l40s", 1_328 * 77 * 362 / 989),
        ("evaluate", "b200", 1_328 * 77 * 2_250 / 989),
        # 596 texts of 58 tokens.
        ("generate", "l40s", 596 * 58 * 0.864 / 4.8),
        ("generate", "l4", 596 * 58 / 16),
        ("finetune_lora", "a10g", 316 * 77 * 70 / 989),
        ("finetune_lora", "rtx4090", 316 * 77 * 165 / 989),
    ],
)
def test_where_nothing_was_measured_data_sheets_scale_the_rate(work: str, gpu: str, tokens_per_s: float) -> None:
    table = read_table()
    rate = table.rate(work, 32, table.gpu(gpu), PARAMETERS)
    assert rate.tokens_per_s == pytest.approx(tokens_per_s)
    assert rate.measured_on == "h200" and "data sheets" in rate.scaled
    assert table.rate(work, 32, table.gpu("h200"), PARAMETERS).measured_on == ""


def test_the_bound_that_binds_is_scaled_by() -> None:
    assert by_data_sheet("finetune_full", SLOW, FAST) == (
        0.5,
        "scaled from fast by bf16 peak (data sheets: 500 against 1000 TFLOP/s)",
    )
    assert by_data_sheet("evaluate", FAST, SLOW)[0] == 2
    assert by_data_sheet("generate", SLOW, FAST) == (
        0.25,
        "scaled from fast by memory bandwidth (data sheets: 1 against 4 TB/s)",
    )


def test_rows_of_two_other_gpus_are_not_mixed() -> None:
    # At batch 10 `third` takes 1 s a step; of `fast` alone it is 0.4 s.
    third = dataclasses.replace(row("finetune_lora", 10, 100, batch_size=10), gpu="third")
    several = dataclasses.replace(row("finetune_lora", 20, 100, batch_size=2), gpu="third", together=5)
    gpus = {**TABLE.gpus, "third": dataclasses.replace(FAST, name="third")}
    table = CostTable(gpus, (*TABLE.throughputs, third, several), TABLE.constants)
    rate = table.rate("finetune_lora", 10, SLOW, PARAMETERS)
    assert (rate.tokens_per_s, rate.measured_on, rate.shared) == (1_250, "fast", 0)


OWN_GPU = '[[gpu]]\nname = "mine"\nbf16_tflops = 100\nmemory_tb_per_s = 1\nsource = "measured"\n'
OWN_RATE = (
    '[[throughput]]\ngpu = "mine"\nwork = "evaluate"\nmodel = "llama-2-7b"\nparameters = 6_738_415_616\n'
    'examples_per_s = 10\ntokens_per_example = 77\nsource = "measured"\n'
)


def test_a_table_of_ones_own_adds_rows_and_takes_the_place_of_others(tmp_path: Path) -> None:
    priced = '[[gpu]]\nname = "l40s"\nbf16_tflops = 300\nmemory_tb_per_s = 0.8\nprice = 2\nsource = "our contract"\n'
    constant = '[[constant]]\nname = "yield"\nvalue = 0.9\nunit = "examples a text"\nsource = "measured"\n'
    (tmp_path / "own.toml").write_text(OWN_GPU + priced + OWN_RATE + constant)
    table, shipped = read_table(tmp_path / "own.toml"), read_table()
    assert table.rate("evaluate", 0, table.gpu("mine"), PARAMETERS).tokens_per_s == 770
    # Of whatever sizes the shipped ones are.
    (tmp_path / "start.toml").write_text('[[constant]]\nname = "setup.evaluate"\nvalue = 7\nunit = "s"\nsource = "measured"\n')
    assert {read_table(tmp_path / "start.toml").constant("setup.evaluate", size) for size in (10**8, PARAMETERS)} == {7}
    assert table.rate("evaluate", 0, table.gpu("mine"), PARAMETERS).measured_on == ""
    assert (table.gpu("l40s").price, table.gpu("l40s").bf16_tflops, table["yield"]) == (2, 300, 0.9)
    assert table.gpu("h200") == shipped.gpu("h200")
    assert (shipped.gpu("l40s").price, shipped["yield"], "mine" in shipped.gpus) == (2.62, 0.995, False)
    assert len(table.throughputs) == len(shipped.throughputs) + 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[[gpu", ("is no TOML", "mend it")),
        ("[[gpus]]\n", ("section 'gpus'", "gpu, throughput, constant")),
        ('gpu = "l40s"\n', ("gpu is no list of rows", "[[gpu]]")),
        (OWN_GPU + 'vram = "24"\n', ("[[gpu]] number 1", "key 'vram'", "its keys are name, bf16_tflops")),
        (OWN_GPU.replace("memory_tb_per_s = 1\n", ""), ("[[gpu]] number 1", "has no memory_tb_per_s", "add it")),
        (OWN_GPU.replace("100", '"100"'), ("bf16_tflops='100'", "a number, above 0")),
        (OWN_GPU.replace("100", "0"), ("bf16_tflops=0", "above 0", "leave the row out")),
        (OWN_GPU.replace("100", "nan"), ("bf16_tflops=nan", "above 0")),
        (OWN_GPU.replace("100", "true"), ("bf16_tflops=True", "above 0")),
        (OWN_GPU + "price = -1\n", ("price=-1", "0 or more")),
        (OWN_GPU.replace('"measured"', '" "'), ("source=' '", "text that says something")),
        (OWN_GPU + OWN_GPU, ("two rows of mine", "keep one")),
        (OWN_RATE, ("gpu='mine', which has no row", "h200", "add a [[gpu]]")),
        (OWN_GPU + OWN_RATE.replace("evaluate", "dream"), ("[[throughput]] number 1", "work='dream'", "finetune_lora")),
        (OWN_GPU + OWN_RATE.replace("evaluate", "finetune_lora"), ("batch_size=0", "needs one above 0")),
        (OWN_GPU + OWN_RATE + "share_prefix = 1\n", ("share_prefix=1", "true or false")),
        (OWN_GPU + OWN_RATE + "processes = 0\n", ("processes=0", "whole number, above 0")),
        (OWN_GPU + OWN_RATE + 'head = "texts"\n', ("head='texts'", "classes or vocabulary")),
        (OWN_GPU + OWN_RATE.replace("6_738_415_616", "6.7e9"), ("parameters=6700000000.0", "whole number")),
        (
            '[[constant]]\nname = "yeild"\nvalue = 1\nunit = ""\nsource = "x"\n',
            ("name='yeild'", "no estimate reads", "yield"),
        ),
    ],
)
def test_an_own_table_that_is_wrong_is_refused_with_file_key_rule_and_way_out(
    text: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_table(file)
    for part in (str(file), *parts):
        assert part in str(refused.value)


def test_an_own_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.toml cannot be read \(No such file"):
        read_table(tmp_path / "own.toml")


def test_the_gpu_of_a_cluster_is_told_by_rays_names_for_it() -> None:
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    table = read_table()
    rays_name = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type
    for device, name in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA B200", "b200"),
    ):
        assert table.gpu_of_nodes({rays_name(device)}) == name
    with pytest.raises(NoEstimate, match=r"GPUs are T4, which has no row; .*--throughputs.*--gpu"):
        table.gpu_of_nodes({"T4"})
    with pytest.raises(NoEstimate, match=r"several kinds of GPU \(H100, L40S\).*--gpu"):
        table.gpu_of_nodes({"L40S", "H100"})
    with pytest.raises(NoEstimate, match=r"no node of the cluster says which GPU it has.*--gpu"):
        table.gpu_of_nodes(set())


def test_every_row_of_the_shipped_table_says_where_it_is_from() -> None:
    table = read_table()
    for one in (*table.gpus.values(), *table.throughputs, *table.constants.values()):
        assert one.source.split()[0].rstrip(":") in ("measured", "published", "assumed"), one
    for throughput in table.throughputs:
        assert throughput.gpu in table.gpus and throughput.work in FLOPS_PER_PARAMETER
        assert (throughput.batch_size > 0) == throughput.work.startswith("finetune"), throughput
        assert throughput.together == 1 or throughput.work == "finetune_lora", throughput


def test_two_rows_of_one_thing_are_refused(tmp_path: Path) -> None:
    constant = '[[constant]]\nname = "yield"\nvalue = 1\nunit = ""\nsource = "assumed"\n'
    (tmp_path / "table.toml").write_text(f"gpu = []\nthroughput = []\n{constant}{constant}")
    with pytest.raises(UserError, match="two rows of yield"):
        read_table(tmp_path / "table.toml")


def test_a_generator_of_another_recipe_is_priced_by_its_own(llama: Experiment) -> None:
    whole = dataclasses.replace(llama, generator=GeneratorConfig(finetune=FinetuneConfig(method="full", batch_size=2)))
    found = of_stage(estimate(whole), "generator")[0]
    assert found.gpu_seconds == pytest.approx(100 + 391_722 * 100 / (1_000 * 4 / 6))
    assert found.checkpoint_bytes == 2 * 14 * PARAMETERS


def test_the_least_memory_is_weights_gradients_and_the_optimizers_state(llama: Experiment) -> None:
    found = {one.step.stage: one.memory_bytes for one in estimate(llama).steps}
    embeddings = 32_000 * 4_096
    body = PARAMETERS - embeddings
    # bf16 weights; of each trained parameter a gradient, what its fp32 master has beyond the weight, and two moments.
    assert found["generator"] == 2 * (PARAMETERS + ADAPTER) + 12 * (ADAPTER + 2 * embeddings)
    assert found["task_model"] == 2 * (body + ADAPTER) + 12 * ADAPTER
    assert (found["synthetic_pool"], found["evaluation"], found["sources"]) == (2 * PARAMETERS, 2 * body, 0)

    def of_workers(zero_stage: int, num_workers: int = 4, dtype: str = "bfloat16") -> float:
        finetune = FinetuneConfig(method="full", dtype=dtype, zero_stage=zero_stage)
        resources = {**llama.resources, "generator": Resources(num_workers=num_workers, gpus_per_worker=1)}
        whole = dataclasses.replace(llama, generator=GeneratorConfig(finetune=finetune), resources=resources)
        return of_stage(estimate(whole), "generator")[0].memory_bytes / PARAMETERS

    assert [of_workers(stage) for stage in range(4)] == pytest.approx([16, 2 + 2 + 3, 2 + 0.5 + 3, 4])
    assert of_workers(3, num_workers=1) == pytest.approx(16) == of_workers(0, dtype="float32")
    on_cpus = dataclasses.replace(llama, resources={**llama.resources, "generator": Resources()})
    assert of_stage(estimate(on_cpus), "generator")[0].memory_bytes == 0


def test_a_shipped_price_names_the_machine_and_the_year_and_a_card_its_memory() -> None:
    gpus = read_table().gpus
    for gpu in gpus.values():
        assert gpu.memory_gb > 0
        assert gpu.price is None or re.search(r"AWS \S+\.\d+xlarge.* \$[\d.]+ an hour on demand.* 2026", gpu.source), gpu
    # Dollars of the machine over its GPUs.
    per_gpu = {"l40s": 10.49264 / 4, "a10g": 5.672 / 4, "l4": 4.6016 / 4, "b200": 113.9328 / 8}
    assert {name: gpus[name].price for name in per_gpu} == {name: round(price, 2) for name, price in per_gpu.items()}


def test_a_gguf_file_says_how_large_its_model_is() -> None:
    metadata = {
        "general.architecture": "qwen2",
        "qwen2.embedding_length": 1_536,
        "qwen2.block_count": 28,
        "qwen2.attention.head_count": 12,
        "qwen2.attention.head_count_kv": 2,
        "qwen2.feed_forward_length": 8_960,
    }
    shape = ModelShape.of_settings(settings_of_gguf(GgufHeader(metadata, {"token_embd.weight": [1_536, 151_936]})))
    # Qwen2.5-1.5B's 1,543,714,304 without its biases.
    assert shape.num_parameters == 1_543_714_304 - 28 * (1_536 + 2 * 256)
    with pytest.raises(UserError, match="no number for hidden_size"):
        ModelShape.of_settings(settings_of_gguf(GgufHeader({"general.architecture": "qwen2"}, {})))
