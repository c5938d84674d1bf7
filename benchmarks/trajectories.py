"""Models of nested training sets from one trajectory beside models that are each finetuned from the start:

    python -m benchmarks.trajectories --seeds 8

A study in small, on the CPU: a tiny Llama whose body has been trained on another draw of the template corpus (with all weights,
and without its head: what a large model's pretraining does for it), starting points of three sizes with a new head, and from
the smallest of them cells of two kinds and three sizes, by LoRA. Both arms draw the same sets and have the same recipe, but for
the schedule: warm-up and cosine for each size, or one trunk with a cool-down branch a size. Reports accuracy on the general set
and on the probe's overlap non-entailments, shared minus separate paired by seed with its 95% interval (t over seeds), and the
examples trained, counted in whole batches. Cells are drawn from the corpus's own training rows: there is no generator here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.stats.statistics import paired_difference
from benchmarks.common import Figure, finish, make_parser, parse, phase, until_cut_off
from pipelines.data.template_corpus import TemplateCorpusConfig, prepare_template_corpus
from pipelines.data.training_set import TrainingSetConfig, draw_training_set
from pipelines.evaluate.evaluation import EvaluationConfig, evaluate_group
from pipelines.finetune.base_model import ScratchModelConfig, prepare_base_model
from pipelines.finetune.driver import finetune_group
from pipelines.finetune.recipe import WARMUP_STABLE_DECAY, FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig, UntrainedConfig, finetuning_job, initial_task_model
from pipelines.resources import Resources, no_report

ARMS = ("separate", "shared")
KINDS = ("original", "biased_synthetic")
MEASURES = {"general": "template_test/accuracy", "probe": "template_probe/lexical_overlap/non-entailment/accuracy"}
HERE = Resources(in_process=True)
Model = tuple[str, int, int]
"""Kind ("starting" or a cell's), size, seed."""
Accuracies = dict[str, dict[Model, dict[str, float]]]
"""By arm, model and measure."""


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--starting-sizes", type=int, nargs="+", default=[160, 320, 960])
    parser.add_argument("--training-sizes", type=int, nargs="+", default=[80, 160, 320])
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--teaching-epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parse(parser)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter()
    accuracies: Accuracies = {}
    trained: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch, until_cut_off():
        measure(Path(scratch), arguments, accuracies, trained)
    seconds = round(time.perf_counter() - started)
    ray.shutdown()
    if accuracies.keys() == {*ARMS}:
        print_table(accuracies)
    finish(parser, arguments, figures_of(accuracies), details={"examples_trained": trained, "seconds": seconds})


def figures_of(accuracies: Accuracies) -> list[Figure]:
    """A figure a kind, size and measure: the accuracy of each seed's model, by arm."""
    cells = dict.fromkeys((kind, size) for models in accuracies.values() for kind, size, _ in models)
    return [
        Figure(
            f"{kind}, {size:,} examples: {name}",
            "accuracy",
            {
                arm: [of[name] for (k, s, _), of in models.items() if (k, s) == (kind, size)]
                for arm, models in accuracies.items()
            },
            peer="separate",
        )
        for kind, size in cells
        for name in MEASURES
    ]


def measure(folder: Path, arguments: Any, accuracies: Accuracies, trained: dict[str, int]) -> None:
    """Put accuracies, by arm and model, and the examples that each arm was trained on into what is given, arm by arm."""
    phase("a base model that reads the corpus")
    sources, base = str(folder / "sources"), str(folder / "base")
    prepare_template_corpus(TemplateCorpusConfig(num_train=3_000, num_test=600, num_probe_per_group=100), sources)
    language = FinetuneConfig(
        method="full", learning_rate=3e-3, epochs=2, batch_size=32, warmup_ratio=0.1, weight_decay=0.01, max_grad_norm=1.0,
        dtype="float32", zero_stage=0, log_every=100,
    )  # fmt: skip
    shape = ScratchModelConfig(
        hidden_size=96, num_layers=3, num_heads=3, num_kv_heads=3, intermediate_size=288, pretraining=language
    )
    prepare_base_model(shape, base, sources=sources, resources=HERE)
    initial_task_model(UntrainedConfig(99), base, str(folder / "taught-head"))
    prepare_template_corpus(TemplateCorpusConfig(seed=1, num_train=9_000, num_dev=30, num_test=30), str(folder / "other"))
    taught = replace(language, learning_rate=2e-3, epochs=arguments.teaching_epochs)
    job = finetuning_job(
        TaskModelConfig(taught, 99), str(folder / "other" / "train.parquet"), base, str(folder / "taught-head")
    )
    checked(finetune_group([job], [str(folder / "taught")], resources=HERE, reports=[no_report])[0])
    shutil.copytree(folder / "taught" / "model", folder / "base" / "model", dirs_exist_ok=True)
    separate = replace(
        language, method="lora", learning_rate=arguments.learning_rate, epochs=1, batch_size=arguments.batch_size,
        warmup_ratio=0.3, lora_rank=16, lora_dropout=0.1, share_prefix=False, group_by_length=True, log_every=50,
        tokens_per_microbatch=4_096,
    )  # fmt: skip
    recipes = {"separate": separate, "shared": replace(separate, schedule=WARMUP_STABLE_DECAY, cooldown_ratio=0.2)}
    seeds = range(arguments.seeds)
    for seed in seeds:
        initial_task_model(UntrainedConfig(seed), base, str(folder / f"untrained-{seed}"))
    for arm in ARMS:
        phase(f"{arm}: training")
        place = folder / arm
        outputs: dict[Model, Path] = {}
        trained[arm] = 0
        for kinds, sizes in ((("starting",), arguments.starting_sizes), (KINDS, arguments.training_sizes)):
            starts = {
                seed: place / f"starting-{min(arguments.starting_sizes)}-{seed}"
                if kinds is KINDS
                else folder / f"untrained-{seed}"
                for seed in seeds
            }
            # Trunks before branches.
            for group in ([max(sizes)], sorted(sizes)[:-1]):
                models = [(kind, size, seed) for kind in kinds for size in group for seed in seeds]
                trained[arm] += train(arm, models, sorted(sizes), sources, base, starts, place, recipes[arm])
                outputs |= {model: place / "-".join(map(str, model)) for model in models}
        phase(f"{arm}: evaluating")
        config = EvaluationConfig(sets=("template_test", "template_probe"), dtype="float32")
        results = evaluate_group(
            config, sources, base, list(map(str, outputs.values())), [f"{output}-evaluation" for output in outputs.values()],
            resources=Resources(), reports=[no_report] * len(outputs),
        )  # fmt: skip
        accuracies[arm] = {
            model: {name: checked(result)[key] for name, key in MEASURES.items()}
            for model, result in zip(outputs, results, strict=True)
        }


def train(
    arm: str,
    models: Sequence[Model],
    sizes: Sequence[int],
    sources: str,
    base: str,
    starts: dict[int, Path],
    place: Path,
    recipe: FinetuneConfig,
) -> int:
    """Finetune `models` at once; the number of examples that were trained on."""
    jobs, outputs = [], []
    for kind, size, seed in models:
        name = f"{kind}-{size}-{seed}"
        nested = tuple(smaller for smaller in sizes if smaller < size) if arm == "shared" else ()
        draw_training_set(
            TrainingSetConfig(kind, size, seed, nested_sizes=nested), f"{sources}/train.parquet", str(place / f"set-{name}")
        )
        trunk = str(place / f"{kind}-{max(sizes)}-{seed}") if arm == "shared" and size < max(sizes) else None
        config = TaskModelConfig(recipe, seed, nested)
        jobs.append(finetuning_job(config, str(place / f"set-{name}" / "examples.parquet"), base, str(starts[seed]), trunk))
        outputs.append(str(place / name))
    results = finetune_group(jobs, outputs, resources=HERE, reports=[no_report] * len(jobs))
    metrics = [checked(result) for result in results]
    return sum(result["num_steps"] - (result.get("branched_at_step") or 0) for result in metrics) * int(recipe.batch_size)


def checked(result: dict[str, Any] | Exception) -> dict[str, Any]:
    if isinstance(result, Exception):
        raise result
    return result


def print_table(accuracies: Accuracies) -> None:
    print("kind               size  measure   separate  shared   shared - separate (95%)")
    cells = dict.fromkeys((kind, size) for kind, size, _ in sorted(accuracies["shared"], key=lambda model: model[1]))
    for kind, size in sorted(cells, key=lambda cell: ("starting", *KINDS).index(cell[0])):
        for name in MEASURES:
            by_arm = {
                arm: {seed: of[name] for (k, s, seed), of in accuracies[arm].items() if (k, s) == (kind, size)} for arm in ARMS
            }
            means = [sum(by_seed.values()) / len(by_seed) for by_seed in by_arm.values()]
            difference = paired_difference(by_arm["shared"], by_arm["separate"])
            bounds = f"[{difference.interval.low:+.3f}, {difference.interval.high:+.3f}]" if difference.interval else ""
            print(f"{kind:17} {size:6}  {name:8}  {means[0]:.3f}     {means[1]:.3f}    {difference.mean:+.3f} {bounds}")


if __name__ == "__main__":
    main()
