"""What a study asks of its sources is checked before anything is built."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from pipelines.data.kinds import Added, Mix
from pipelines.data.table_sources import Table, TableSources
from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.errors import UserError
from pipelines.evaluate.evaluation import EvaluationConfig
from pipelines.tasks.examples import read_examples, write_examples
from pipelines.tasks.heuristics import Heuristic
from pipelines.tasks.nli import NLI
from pipelines.tasks.task import Field, Task
from pipelines.tasks.test_sets import TestSet
from sweep.graph.records import Store
from sweep.graph.stages import REGISTRY, Job
from sweep.plan.plan import plan_study
from sweep.plan.throughputs import read_table
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo
from sweep.study.grid import build_grid
from sweep.study.inputs import check_blindspot, check_sizes, left_out, missing_inputs, pool_copies, with_inputs
from sweep.study.loading import Loaded, load_experiment

TABLE = read_table()
ROWS = "".join(f"{label} p{n},h{n},{label}\n" for label in ("entailment", "neutral", "contradiction") for n in range(100))


def own_tables(folder: Path, **changes: object) -> Experiment:
    """The demo on tables: 99 training rows a label and one of the dev set, ten blindspot rows."""
    for name, rows in (("train.csv", ROWS), ("test.csv", "a,b,neutral\n"), ("spot.csv", "c d,d,non-entailment\n" * 10)):
        (folder / name).write_text(f"premise,hypothesis,label\n{rows}")
    sources = TableSources("train.csv", general="test.csv", blindspots="spot.csv", dev_rows_per_label=1)
    evaluation = EvaluationConfig(sets=("test", "spot"), dtype="float32", heuristics=(demo().heuristic,))
    values = {"sources": sources, "sources_folder": str(folder), "evaluation": evaluation, "training_sizes": (297,)}
    return replace(demo(), general_set="test", blindspot_set="spot", **values | changes)  # type: ignore[arg-type]


def test_tables_are_described_when_the_study_is_made(tmp_path: Path) -> None:
    study = own_tables(tmp_path)
    assert study.sources.missing(str(tmp_path)) == () and missing_inputs(study) == ()
    assert with_inputs(study) is study
    sources = [step for step in build_grid(study) if step.stage == "sources"]
    assert [step.slug for step in sources] == ["data", "data-with-test-sets"]
    assert sources[0].config == study.sources.for_training


def test_what_appears_after_the_plan_is_described_by_the_run(tmp_path: Path) -> None:
    study = own_tables(tmp_path)
    for name in ("train.csv", "spot.csv"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    absent = replace(study, sources=TableSources("train.csv", general="test.csv", blindspots="spot.csv", dev_rows_per_label=1))
    assert missing_inputs(absent) == tuple(f"data: not found at {tmp_path / name}" for name in ("train.csv", "spot.csv"))
    check_sizes(absent)
    with pytest.raises(UserError, match=r"train.csv does not exist"):
        with_inputs(absent)
    for name in ("train.csv", "spot.csv"):
        (tmp_path / f"moved-{name}").rename(tmp_path / name)
    assert with_inputs(absent).sources == study.sources


def test_a_set_that_the_sources_lack_is_refused_with_those_they_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the sources have no set 'snli'; they have template_test, template_probe, dev"):
        replace(demo(), evaluation=EvaluationConfig(sets=("template_test", "template_probe", "snli")))
    with pytest.raises(UserError, match="the sources have no set 'hans'; they have test, spot, dev"):
        own_tables(tmp_path, evaluation=EvaluationConfig(sets=("test", "hans")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training_sizes": (300, 297)},
            r"training_sizes has 300.*297 training rows \(99 entailment, .* or less of it: training_sizes=\(297,\)$",
        ),
        (
            {"starting_sizes": (0, 298, 297)},
            r"starting_sizes has 298.* 297 training rows .* or less of it: starting_sizes=\(0, 297\)$",
        ),
        ({"judge": 400}, r"judge has 400"),
        ({"kinds": (Mix(original=0.5, synthetic=0.5),), "training_sizes": (600,)}, r"training_sizes has 600"),
        ({"kinds": (Added(synthetic=1.0),), "training_sizes": (300,)}, r"training_sizes has 300"),
        (
            {"training_sizes": (150,), "starting_sizes": (150,), "disjoint_from_starting": True},
            r"training_sizes has 150.*of which a starting point takes 150 for itself",
        ),
    ],
)
def test_more_examples_than_there_are_is_refused_by_the_plan(tmp_path: Path, changes: dict, message: str) -> None:
    study = own_tables(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        plan_study(study, Store(str(tmp_path / "store")), TABLE, lambda _: TABLE.gpu("h200"), 1)
    assert not (tmp_path / "store").exists()


def test_sizes_are_said_by_the_parameter_only_where_the_studys_function_has_it(tmp_path: Path) -> None:
    own_tables(tmp_path)
    (tmp_path / "two.py").write_text(
        f"""
from dataclasses import replace
from sweep import Experiment, TableSources
from sweep.experiments import demo

def fixed() -> Experiment:
    return asked((300, 270))

def asked(training_sizes: tuple[int, ...] = (300, 270)) -> Experiment:
    sources = TableSources("train.csv", general="test.csv", blindspots="spot.csv")
    evaluation = replace(demo().evaluation, sets=("test", "spot"), heuristics=(demo().heuristic,))
    return replace(
        demo(), sources=sources, sources_folder={str(tmp_path)!r}, evaluation=evaluation, general_set="test",
        blindspot_set="spot", training_sizes=training_sizes,
    )
"""
    )
    for name, way_out in (("asked", "-p training_sizes=270"), ("fixed", "training_sizes=(270,)")):
        study = load_experiment(f"{tmp_path}/two.py:{name}").experiment
        with pytest.raises(UserError) as refused:
            check_sizes(study)
        assert str(refused.value).endswith(f"give more data, or less of it: {way_out}")


def test_what_a_pool_gives_needs_no_data(tmp_path: Path) -> None:
    half = Mix(original=0.5, synthetic=0.5)
    check_sizes(own_tables(tmp_path, kinds=("synthetic",), training_sizes=(3_000,)))
    check_sizes(own_tables(tmp_path, kinds=(half,), training_sizes=(594,)))
    check_sizes(own_tables(tmp_path, training_sizes=(147,), starting_sizes=(150,), disjoint_from_starting=True))


def test_unfit_rows_stop_the_plan(tmp_path: Path) -> None:
    study = own_tables(tmp_path)
    (tmp_path / "spot.csv").write_text("premise,hypothesis,label\nc,d,no\n")
    changed = replace(study, sources=TableSources("train.csv", general="test.csv", blindspots="spot.csv"))
    with pytest.raises(UserError, match=r"1 of 1 rows have labels that are none of entailment, .*'no' \(1\)"):
        check_sizes(changed)


def test_data_of_another_task_is_refused() -> None:
    sentiment = Task("sentiment", ("bad", "good"), (Field("review", "Review:"),), "Is it? {review}", "Of {label}")
    for sources in (TemplateCorpusConfig(), TableSources("train.csv", general=Table("test.csv", labels={"1": "entailment"}))):
        with pytest.raises(
            UserError, match=r"template corpus have premise, hypothesis .* the task sentiment|maps onto 'entailment'"
        ):
            sources.for_task(sentiment)


@dataclass(frozen=True)
class Echoes:
    """Sources of another make: each training text is tested, too."""

    num_per_label: int = 20

    test_sets = (TestSet("echoes"),)
    set_names = ("echoes",)
    made_of: ClassVar[dict[str, tuple[str, ...]]] = {}

    @property
    def for_training(self) -> "Echoes":
        return self

    def for_task(self, task: Task) -> "Echoes":
        return self

    def missing(self, folder: str) -> tuple[str, ...]:
        return ()

    def with_content(self, folder: str) -> "Echoes":
        return self

    def counts(self, folder: str) -> dict[str, int]:
        num = self.num_per_label * len(NLI.labels)
        by_label = {f"train/{label}": self.num_per_label for label in NLI.labels}
        return {"train/num_examples": num, "echoes/num_examples": num, **by_label}

    def read_as(self, folder: str) -> dict[str, str]:
        return {}

    def prepare(self, output: str, *, folder: str) -> dict[str, int]:
        rows = [
            {"id": f"{label}-{n}", "premise": f"p{n}", "hypothesis": label, "label": label}
            for label in NLI.labels
            for n in range(self.num_per_label)
        ]
        for name in ("train", "dev", "echoes"):
            write_examples(pa.Table.from_pylist(rows), f"{output}/{name}.parquet")
        return self.counts(folder)


def test_sources_of_any_make_are_planned_checked_and_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = EvaluationConfig(sets=("echoes",), heuristics=(demo().heuristic,))
    study = replace(
        demo(), sources=Echoes(), evaluation=evaluation, general_set="echoes", blindspot_set="echoes", training_sizes=(60,)
    )
    (sources,) = [step for step in build_grid(study) if step.stage == "sources"]
    metrics = REGISTRY["sources"].run(Job(sources.config, {}, str(tmp_path)))
    assert metrics["train/num_examples"] == 60 and read_examples(tmp_path / "echoes.parquet").num_rows == 60
    check_sizes(study)
    with pytest.raises(UserError, match="training_sizes has 63, and the data has at most 60 training rows"):
        check_sizes(replace(study, training_sizes=(63,)))
    monkeypatch.setattr(Echoes, "counts", lambda self, folder: {"train/num_examples": 66, "train/entailment": 19})
    with pytest.raises(UserError, match=r"has 60, 20 of each label, .* at most 66 training rows \(19 entailment\)"):
        check_sizes(study)
    monkeypatch.undo()
    evaluations = [step for step in build_grid(study) if step.stage == "evaluation"]
    assert {step.config.test_sets for step in evaluations} == {(TestSet("echoes"),)}


def test_a_heuristic_that_is_never_wrong_in_the_blindspot_set_is_refused_by_the_plan(tmp_path: Path) -> None:
    check_blindspot(own_tables(tmp_path))
    apart = own_tables(tmp_path)
    for rows, words in (
        ("c,d,non-entailment\n", "holds of 0"),
        ("c d,d,entailment\n", "holds of 1, none of which has another"),
    ):
        (tmp_path / "spot.csv").write_text(f"premise,hypothesis,label\n{rows}")
        apart = replace(apart, sources=TableSources("train.csv", general="test.csv", blindspots="spot.csv"))
        with pytest.raises(UserError, match=words):
            plan_study(
                replace(apart, training_sizes=(60,)), Store(str(tmp_path / "store")), TABLE, lambda _: TABLE.gpu("h200"), 1
            )


def test_labels_folded_onto_another_label_do_not_tell_where_a_heuristic_is_wrong(tmp_path: Path) -> None:
    study = own_tables(tmp_path)
    mine = Heuristic("mine", demo().heuristic.holds, predicts="contradiction")
    changed = replace(study, heuristic=mine, evaluation=replace(study.evaluation, heuristics=(mine,)))
    with pytest.raises(UserError, match="folded to 'entailment' and 'non-entailment', and the heuristic mine predicts 'contra"):
        check_blindspot(changed)


def test_a_probe_slice_of_another_set_is_no_slice_of_a_described_one(tmp_path: Path) -> None:
    assert own_tables(tmp_path).blindspot_slice == "holds/lexical_overlap/non-entailment"
    with pytest.raises(UserError, match="no probe_slice that the blindspot set 'spot' has"):
        own_tables(tmp_path, evaluation=EvaluationConfig(sets=("test", "spot"), dtype="float32"))
    assert demo().blindspot_slice == "lexical_overlap/non-entailment"


def test_copies_of_test_texts_in_a_pool_of_ones_own_are_told_in_the_plan_and_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("premise,hypothesis,label\n" + "a b,b,entailment\n" * 3)
    study = own_tables(tmp_path, synthetic="pool.csv", generator=None, generation=None)
    assert list(pool_copies(study)) == [] and "pool_copies" not in manifest(Loaded(study, {}), []).parameters
    # The label does not matter, nor how often a text is there.
    (tmp_path / "pool.csv").write_text("premise,hypothesis,label\n" + "a,b,entailment\na b,b,neutral\nc d,d,neutral\n" * 2)
    study = own_tables(tmp_path, synthetic="pool.csv", generator=None, generation=None)
    told = "models that are trained on it know them; take them out of the file"
    lines = [
        f"pool: pool.csv: 1 of 1 texts of test are in the pool, too: {told} ('a' | 'b')",
        f"pool: pool.csv: 1 of 1 texts of spot are in the pool, too: {told} ('c d' | 'd')",
    ]
    assert list(pool_copies(study)) == manifest(Loaded(study, {}), []).parameters["pool_copies"] == lines
    of_one = replace(study.evaluation, sets=("test", "dev"))
    assert list(pool_copies(replace(study, evaluation=of_one, blindspot_set="test"))) == lines[:1]
    assert list(pool_copies(own_tables(tmp_path))) == []


def test_copies_of_the_template_corpus_s_tests_are_told(tmp_path: Path) -> None:
    demo().sources.prepare(str(tmp_path), folder="")
    examples = read_examples(str(tmp_path / "template_test.parquet"))
    write_examples(examples.slice(0, 30), str(tmp_path / "pool.parquet"))
    study = replace(demo(), synthetic=str(tmp_path / "pool.parquet"), generator=None, generation=None)
    (line,) = pool_copies(study)
    assert line.startswith(f"pool: pool.parquet: 30 of {examples.num_rows:,} texts of template_test are in the pool, too")


def test_a_plan_names_the_rows_that_are_left_out(tmp_path: Path) -> None:
    study = own_tables(tmp_path)
    assert list(left_out(study)) == []
    (tmp_path / "spot.csv").write_text("premise,hypothesis,label\nc d,d,non-entailment\ne,f,maybe\n,g,neutral\nc e,e,neutral\n")
    (tmp_path / "pool.csv").write_text(
        "premise,hypothesis,label\n" + "a b,b,entailment\n" * 3 + "a b,,entailment\na,b,Neutral\n"
    )
    sources = TableSources("train.csv", general="test.csv", blindspots="spot.csv", dev_rows_per_label=1)
    changed = replace(study, sources=sources, synthetic="pool.csv", generator=None, generation=None)
    assert list(left_out(changed)) == [
        "data: left out of spot: 1 blank_premise, 1 unknown_label; `blindsweep data check` shows the rows",
        "pool: left out of pool.csv: 1 blank_hypothesis, 1 unknown_label ('Neutral'); `blindsweep data check` shows the rows",
    ]
