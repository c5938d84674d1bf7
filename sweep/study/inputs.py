"""A study's inputs from outside: its data, its weights, its own pools. A plan can do without them, a run cannot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.data.kinds import ORIGINAL, Kind, sizes_of
from pipelines.data.own_pool import OwnPoolConfig, examples_of, read_pool
from pipelines.data.sources import NLISourcesConfig
from pipelines.data.table_sources import TableSources
from pipelines.data.training_set import check_pool, sizes_per_label
from pipelines.errors import UserError
from pipelines.finetune.base_model import CHAT_TEMPLATE, PretrainedModelConfig, RandomModelConfig, pretrained_model_config
from pipelines.models.hub import hub_repository
from pipelines.storage import join
from pipelines.tables.remote import is_remote
from pipelines.tasks.examples import read_examples
from pipelines.tasks.task import Task
from sweep.graph.step import Step
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator

MOST_SHOWN = 80
"""Characters of a text that are shown."""


def missing_inputs(experiment: Experiment) -> tuple[str, ...]:
    """A line for each input that is not here; nothing is said to be built from it."""
    lines = list(missing_data(experiment))
    for base in _checkpoints(experiment):
        if _is_known(base):
            continue
        if hub_repository(base.path) is not None:
            lines.append(f"weights: {base.path} is not in the Hugging Face cache; a run fetches it")
        else:
            lines.append(f"weights: not found at {base.path}")
    return tuple(lines)


def missing_data(experiment: Experiment) -> tuple[str, ...]:
    """The same of the data and the study's own pools alone."""
    of_pools = (pool.table.missing("") for pool in experiment.own_pools)
    return (
        *(f"data: {line}" for line in experiment.sources.missing(experiment.sources_folder)),
        *(f"pool: {line}" for line in of_pools if line),
    )


def left_out(experiment: Experiment) -> Iterator[str]:
    """A line for each table of the data, and each pool of one's own, some of whose rows are no examples of the task."""
    sources, folder = experiment.sources, experiment.sources_folder
    counts = {} if sources.missing(folder) else sources.counts(folder)
    by_set: dict[str, Counter[str]] = {}
    for name, num in counts.items():
        kind, _, rest = name.partition("/")
        if kind == "dropped" and "/" in rest:
            by_set.setdefault(rest.partition("/")[0], Counter())[rest.partition("/")[2]] = num
    read = {f"data: left out of {name}": reasons for name, reasons in by_set.items()}
    for pool in experiment.own_pools:
        if pool.is_known and (dropped := (rows := read_pool(pool)).dropped):
            named = ", ".join(f"{value!r}" for value, _ in rows.unknown_labels.most_common(4))
            reasons = Counter(row["reason"] for row in dropped)
            read[f"pool: left out of {pool.name}"] = Counter(
                {f"{reason} ({named})" if reason == "unknown_label" else reason: num for reason, num in reasons.items()}
            )
    for what, reasons in read.items():
        listed = ", ".join(f"{num:,} {reason}" for reason, num in reasons.most_common())
        yield f"{what}: {listed}; `blindsweep data check` shows the rows"


def pool_copies(experiment: Experiment) -> Iterator[str]:
    """A line for each set that is evaluated and some of whose texts a pool of one's own has, too; of what is here."""
    pools = [pool for pool in experiment.own_pools if pool.is_known]
    if not pools or experiment.sources.missing(experiment.sources_folder):
        return
    names = [name for name in experiment.evaluation.sets if name != "dev"]
    tests = {name: texts_of(table, experiment.task) for name, table in _test_tables(experiment, names).items()}
    for pool in pools:
        for line in copies_of_tests(pool, tests):
            yield f"pool: {pool.name}: {line}"


def copies_of_tests(pool: OwnPoolConfig, tests: Mapping[str, Set[tuple[str, ...]]]) -> Iterator[str]:
    """A line for each test set, its texts by name, some of whose texts a pool of one's own has, too."""
    there = texts_of(read_pool(pool).examples, pool.task)
    for name, texts in tests.items():
        if shared := there & texts:
            shown = " | ".join(repr(shorten(text, MOST_SHOWN, placeholder="…")) for text in min(shared))
            yield (
                f"{len(shared):,} of {len(texts):,} texts of {name} are in the pool, too: models that are trained on it know "
                f"them; take them out of the file ({shown})"
            )


def texts_of(examples: pa.Table, task: Task) -> Set[tuple[str, ...]]:
    """The texts of each example, in the order of the task's fields."""
    return set(zip(*(examples[name].to_pylist() for name in task.field_names), strict=True))


def _test_tables(experiment: Experiment, names: Sequence[str]) -> dict[str, pa.Table]:
    sources, folder = experiment.sources, experiment.sources_folder
    if isinstance(sources, TableSources | NLISourcesConfig):
        return {name: sources.test_examples(name, folder) for name in names}
    with TemporaryDirectory(prefix="blindsweep-") as output:
        sources.prepare(output, folder=folder)
        return {name: read_examples(join(output, f"{name}.parquet"), experiment.task) for name in names}


def check_pools(steps: Sequence[Step]) -> None:
    """Raise UserError for a pool that is, or may be, smaller than what training sets take from it.

    A pool of one's own is counted; of a generated one, what is asked for is all that is certain.
    """
    largest: dict[Any, tuple[Step, Step]] = {}
    for step in steps:
        for pool in step.inputs.values() if step.stage == "training_set" else ():
            if pool.stage == "synthetic_pool":
                config = step.config
                # Seeds take alike, and smaller sizes less.
                alike = (pool.fingerprint, config.kind, config.mix, config.bias)
                if alike not in largest or step.config.size > largest[alike][1].config.size:
                    largest[alike] = (pool, step)
    for pool, drawn in largest.values():
        _check_pool(pool, drawn)


def _check_pool(pool: Step, drawn: Step) -> None:
    own = pool.config if isinstance(pool.config, OwnPoolConfig) else None
    if own and not own.is_known:
        return
    config, there = drawn.config, pool.config.num_by_label
    taken: Counter[str] = Counter()
    for part, size in config.part_sizes.items():
        if part != ORIGINAL:
            taken.update(sizes_per_label(size, config.remainder, config.task.labels))
    for label, num in taken.items():
        if num > there[label]:
            what = f"{drawn.name} takes {num:,} {label} examples from the pool"
            if own:
                raise UserError(
                    f"{what}, and {own.table.path} has {there[label]:,}; choose smaller training_sizes, or add to it"
                )
            raise UserError(
                f"{what}, and generation.num_per_label={pool.config.num_per_label} asks for {there[label]:,} only; choose "
                f"smaller training_sizes, or num_per_label={max(taken.values())} or more"
            )
    if own:
        check_pool(config, examples_of(own), own.table.path)


def with_inputs(experiment: Experiment) -> Experiment:
    """`experiment` with its data and weights described by their content; weights on the hub are fetched for that.

    Raises UserError, with the way out, for what is not there, for random weights in anything but a rehearsal, and as
    `check_sizes`, `check_prompts` and `check_blindspot` do.
    """
    if isinstance(experiment.base_model, RandomModelConfig) and not experiment.rehearsal:
        raise UserError(
            f"{experiment.name} has random weights, which are for a rehearsal: add --rehearse, or leave -p weights=random out"
        )
    given = experiment
    experiment = replace(experiment, sources=experiment.sources.with_content(experiment.sources_folder))
    check_sizes(experiment)
    check_prompts(experiment)
    check_blindspot(experiment)
    for pool in experiment.own_pools:
        if not pool.is_known and not is_remote(pool.table.path):
            raise UserError(f"no pool at {pool.table.path}; restore the file, or give another: synthetic=FILE")
    if not all(pool.is_known for pool in experiment.own_pools):
        experiment = replace(experiment, synthetic=tuple(pool.with_content() for pool in experiment.own_pools))
    if isinstance(experiment.base_model, PretrainedModelConfig):
        experiment = replace(experiment, base_model=_described(experiment.base_model))
    if experiment.task_model_base is not None:
        experiment = replace(experiment, task_model_base=_described(experiment.task_model_base))
    if isinstance(prompted := experiment.generator, PromptedGenerator):
        experiment = replace(experiment, generator=replace(prompted, model=_described(prompted.base_model, chat=True)))
    # The same study is the same object: its plan is still good.
    return given if experiment == given else experiment


def _checkpoints(experiment: Experiment) -> Iterator[PretrainedModelConfig]:
    for base in (experiment.base_model, experiment.task_model_base):
        if isinstance(base, PretrainedModelConfig):
            yield base
    if isinstance(experiment.generator, PromptedGenerator):
        yield experiment.generator.base_model


def _described(model: PretrainedModelConfig, *, chat: bool = False) -> PretrainedModelConfig:
    if _is_known(model):
        return model
    return pretrained_model_config(
        model.path, revision=model.revision, dtype=model.dtype, quantization=model.quantization, download=True, chat=chat
    )


def check_blindspot(experiment: Experiment) -> None:
    """Raise UserError if nothing of a described blindspot set is where going by the study's heuristic is wrong.

    A half of the set is looked at where the set is read; this is of what the heuristic holds. Data that is not here says
    nothing yet.
    """
    heuristic, sources, name = experiment.heuristic, experiment.sources, experiment.blindspot_set
    if not isinstance(sources, TableSources) or experiment.blindspot_slice != heuristic.held_slice:
        return
    if name not in {test_set.name for test_set in sources.test_sets} or sources.missing(experiment.sources_folder):
        return
    examples = sources.test_examples(name, experiment.sources_folder)
    holds = heuristic.of(examples, experiment.task)
    others = {f"non-{label}" for label in experiment.task.labels if label != heuristic.predicts}
    labels = examples["label"].to_pylist()
    if folded := next((label for label in labels if label in others), None):
        raise UserError(
            f"blindspot_set={name!r} has its labels folded to {folded.removeprefix('non-')!r} and {folded!r}, and the "
            f"heuristic {heuristic.name} predicts {str(heuristic.predicts)!r}, so that nothing tells where it is wrong: fold "
            "the set onto that label, or give it an adversarial half"
        )
    if not (holds & (np.array(labels) != str(heuristic.predicts))).any():
        raise UserError(
            f"blindspot_set={name!r}: of its {examples.num_rows:,} examples the heuristic {heuristic.name} holds of "
            f"{int(holds.sum()):,}, none of which has another label than {str(heuristic.predicts)!r}, so that no accuracy "
            "tells where going by it is wrong; give another set, mend the predicate, or name the label that it predicts"
        )


def check_sizes(experiment: Experiment) -> None:
    """Raise UserError for a set that asks for more examples than the data has, and as reading the data does.

    Data that is not here has no size yet. Examples that a pool is to have are another matter.
    """
    if experiment.sources.missing(experiment.sources_folder):
        return
    counts = experiment.sources.counts(experiment.sources_folder)
    there = counts["train/num_examples"]
    taken = max(experiment.starting_sizes) if experiment.disjoint_from_starting else 0

    def fits(size: int, kind: Kind) -> bool:
        size = sizes_of(kind, size).get(ORIGINAL, 0)
        labels = sizes_per_label(
            size, "first_labels" if experiment.remainder == "first_labels" else "drop", experiment.task.labels
        )
        # By label where that is known; of how many a starting point takes which, only the sum is.
        return size + (taken if size else 0) <= there and all(
            labels[label] <= counts.get(f"train/{label}", there) for label in labels
        )

    too_large = {
        "starting_sizes": [size for size in experiment.starting_sizes if size > there],
        "training_sizes": [
            size
            for size in experiment.training_sizes
            if not all(fits(size, kind) for kind in experiment.kinds_by_name.values())
        ],
        "judge": [size for size in (experiment.judge,) if isinstance(size, int) and size > there],
    }
    by_label = ", ".join(
        f"{counts[f'train/{label}']:,} {label}" for label in experiment.task.labels if f"train/{label}" in counts
    )
    for name, sizes in too_large.items():
        if sizes:
            fitting = [size for size in getattr(experiment, name) if size not in sizes] if name != "judge" else []
            besides = f", of which a starting point takes {taken:,} for itself" if taken and name == "training_sizes" else ""
            less = ",".join(map(str, fitting)) or "..."
            if name not in experiment.parameters and name != "judge":
                less = str(tuple(fitting)) if fitting else "(...)"
            # Where there are rows enough, it is a label that is short.
            each = f", {max(sizes) // len(experiment.task.labels):,} of each label" if by_label and max(sizes) <= there else ""
            raise UserError(
                f"{name} has {max(sizes):,}{each}, and the data has at most {there:,} training rows"
                f"{by_label and f' ({by_label})'}{besides}; give more data, or less of it: {experiment.option(name, less)}"
            )


def check_prompts(experiment: Experiment) -> None:
    """Raise UserError for a prompt that shows more examples than the data has, or wants a chat template that there is not."""
    prompted, labels = experiment.generator, experiment.task.labels
    if isinstance(prompted, PromptedGenerator) and prompted.chat == "always":
        folder = Path(prompted.base_model.path)
        settings = folder / "tokenizer_config.json"
        has_template = (folder / CHAT_TEMPLATE).is_file() or (settings.is_file() and '"chat_template"' in settings.read_text())
        if folder.is_dir() and not has_template:
            raise UserError(f"chat='always', and the checkpoint {folder} has no chat template; use chat='auto' or 'never'")
    if not isinstance(prompted, PromptedGenerator | EndpointGenerator):
        return
    if experiment.sources.missing(experiment.sources_folder):
        return
    counts = experiment.sources.counts(experiment.sources_folder)
    shown = -(-prompted.shots // len(labels))
    for label in labels:
        if shown > (num := counts.get(f"train/{label}", counts["train/num_examples"])):
            raise UserError(
                f"shots={prompted.shots} shows up to {shown:,} {label} examples in a prompt, and the data has {num:,} for "
                "training; give fewer shots"
            )


def _is_known(config: PretrainedModelConfig) -> bool:
    return all(file.is_known for file in config.files)
