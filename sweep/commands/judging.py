"""A classifier's judgement of the rows of tables, by the study's own stage: what `blindsweep audit --judge` hands the audit.

(judged,) = judge_tables("blindsweep-store/task_model/start0-original-5000-seed0-0123456789ab", [rows])
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipelines.errors import UserError
from pipelines.storage import RECORD_FILE, is_local, join, local_path, read_text
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Task

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.evaluate.judge import Judge
    from sweep.graph.records import ArtifactId, Record, Store

ROW = "row"
JUDGING_STAGES = ("starting_point", "task_model")


def judge_tables(model: str, tables: Sequence[pa.Table], task: Task = NLI) -> list[pa.Table]:
    """What `model` says of the rows of tables. For each: `row` (int64) and for each label of the task `p/<label>` (float32).

    `model` is a study's task model, as the folder or URI of its artifact, or a classifier's own checkpoint, as
    `pipelines.evaluate.judge` reads one: of `task`, where a study's task model knows its own. Each table has `row` (int64) and
    the task's fields; labels are not looked at. A row with a blank text is not in the result. One whose texts the task model
    was trained on is there, and null; what a checkpoint was trained on is not known.

    Runs in this process, on its GPU if it has one. Raises UserError where `model` is neither, and for a table without a field.
    """
    from pipelines.evaluate.judge import JUDGEMENTS_FILE, Judge, JudgementConfig, judge
    from pipelines.models.process import has_gpu
    from pipelines.resources import Resources
    from pipelines.tasks.examples import write_examples
    from pipelines.tasks.parquet import parquet_table

    use_gpu = has_gpu()
    with tempfile.TemporaryDirectory(prefix="blindsweep-judge-") as folder:
        base_model, judges = join(folder, "base"), [Judge(None)]
        if read_text(join(model, RECORD_FILE)) is None:
            _prepare_checkpoint(model, base_model)
        else:
            task, base_model, judges = _of_study(model)
        examples, judged = join(folder, "examples.parquet"), join(folder, "judged")
        write_examples(_examples(tables, task, model), examples, task)
        try:
            judge(
                JudgementConfig(sets=(), dtype="bfloat16" if use_gpu else "float32", task=task),
                examples,
                folder,
                base_model,
                judges,
                judged,
                resources=Resources(gpus_per_worker=1 if use_gpu else 0, in_process=True),
            )
        except UserError as error:
            # The copy of a checkpoint is gone when this is read.
            raise UserError(str(error).replace(join(folder, "base", "model"), model)) from error
        path = join(judged, JUDGEMENTS_FILE)
        with open(path, "rb") as file:
            table = parquet_table(file, path)
    return list(_by_table(table, len(tables), task))


def check_judge(model: str) -> None:
    """Raise UserError where `model` is neither a study's artifact nor a checkpoint, before a table is read for it."""
    from pipelines.finetune.base_model import pretrained_model_config

    if read_text(join(model, RECORD_FILE)) is None:
        pretrained_model_config(model)


def _prepare_checkpoint(path: str, output: str) -> None:
    from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config

    prepare_base_model(pretrained_model_config(path), output)


def _of_study(model: str) -> tuple[Task, str, list[Judge]]:
    """The task of a study's task model, the folder of its base model, and the judge that it is."""
    from analysis.study.described import recorded_task
    from pipelines.evaluate.judge import Judge
    from sweep.graph.identity import SHORT
    from sweep.graph.integrity import whole_folder
    from sweep.graph.records import ArtifactId, Store

    address = str(local_path(model).absolute()) if is_local(model) else model.rstrip("/")
    *of_store, stage, name = address.split("/")
    if stage not in JUDGING_STAGES:
        raise UserError(
            f"{model} is an artifact of the stage {stage}, and what judges is a task model; give a folder in "
            f"{' or '.join(JUDGING_STAGES)} of the store, or a classifier's checkpoint"
        )
    store = Store("/".join(of_store))
    record = _record(store, ArtifactId(stage, name[: -SHORT - 1], name[-SHORT:]))
    base_model = whole_folder(store, _record(store, record.inputs["base_model"]))
    known = record.payload["config"].get("task")
    task = recorded_task(known, model) if known else NLI
    return task, base_model, [Judge(whole_folder(store, record), tuple(_trained_on(store, record)))]


def _trained_on(store: Store, record: Record) -> Iterator[str]:
    """The examples that a task model was trained on, and those of the models that it continues."""
    from sweep.graph.integrity import whole_folder

    for name, source in record.inputs.items():
        if name == "training_set":
            yield join(whole_folder(store, _record(store, source)), "examples.parquet")
        elif source.stage in JUDGING_STAGES:
            yield from _trained_on(store, _record(store, source))


def _record(store: Store, artifact: ArtifactId) -> Record:
    record = store.read_record(artifact)
    if record is None:
        raise UserError(
            f"{store.folder(artifact)} is not there, and the judge was made from it; take a task model whose store is whole"
        )
    return record


def _examples(tables: Sequence[pa.Table], task: Task, model: str) -> pa.Table:
    """The rows of all tables without those that have a blank text: the columns of an examples table, ids `<table>-<row>`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = []
    for number, table in enumerate(tables):
        if missing := [name for name in task.field_names if name not in table.column_names]:
            raise UserError(
                f"the judge {model} reads {', '.join(task.field_names)}, and the rows have no {', '.join(missing)}; judge them "
                "with a model of their own task"
            )
        texts = {name: table[name].cast(pa.string()) for name in task.field_names}
        ids = pa.array([f"{number}-{row}" for row in table[ROW].to_pylist()], pa.string())
        # The stage wants labels, to say how often the judge agrees, which nobody asks here.
        part = pa.table({"id": ids, **texts, "label": pa.repeat(task.labels[0], table.num_rows).cast(pa.string())})
        for name in task.field_names:
            length = pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(part[name])), 0)
            part = part.filter(pc.greater(length, 0))
        parts.append(part)
    return pa.concat_tables(parts)


def _by_table(judged: pa.Table, num_tables: int, task: Task) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = pc.split_pattern(judged["id"], "-", max_splits=1)
    table_number, row = (pc.list_element(parts, place).cast(pa.int64()) for place in range(2))
    columns = {ROW: row, **{f"p/{label}": judged[f"p_{label}"].cast(pa.float32()) for label in task.labels}}
    both = pa.table(columns)
    for number in range(num_tables):
        yield both.filter(pc.equal(table_number, number))
