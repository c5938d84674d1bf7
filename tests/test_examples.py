"""docs/examples/ and docs/your_own_task.md stay true: each file is short, is planned, and runs to its verdicts."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.data.template_corpus import TemplateCorpusConfig
from pipelines.errors import UserError
from sweep import cli
from sweep.graph.records import Store
from sweep.plan.plan import plan_study
from sweep.plan.throughputs import read_table
from sweep.study.inputs import missing_inputs
from sweep.study.loading import load_experiment
from tests.example_data import POOL, own_pairs, own_pool

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
README = (ROOT / "docs" / "examples" / "README.md").read_text()
MOST_LINES = 79
SST2 = ROOT.parent / "shared" / "data" / "sst2"
PAGE = (ROOT / "docs" / "your_own_task.md").read_text()
BLOCKS = dict(re.findall(r"`(\w+\.py)`[^`]*:\n\n```python\n(.*?)```", PAGE, re.DOTALL))


def film_reviews(folder: Path) -> None:
    for name, number in (("train", 6_000), ("dev", 20), ("test", 60)):
        rows = [f"film {i} is {'not ' * (i % 3 == 0)}{'dull' if i % 2 else 'fine'}\t{(i + 1) % 2}\n" for i in range(number)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))


SMALL = TemplateCorpusConfig(num_train=1_200, num_test=60, num_probe_per_group=12)
DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "sst2_negation": (film_reviews, "data={folder}"),
    "own_nli": (lambda folder: own_pairs(folder, SMALL), "data={folder}"),
    "own_pool": (lambda folder: own_pool(folder, POOL), "pool={folder}/pool.parquet"),
}
"""What writes small data of the columns that the example reads, and the parameter that names it."""


def planned_steps(file: Path, folder: Path, *assignments: str) -> Counter[str]:
    """The number of steps of each stage that is left to build."""
    experiment = load_experiment(str(file), assignments).experiment
    assert missing_inputs(experiment) == ()
    table = read_table()
    plan = plan_study(experiment, Store(folder / "store"), table, lambda _: table.gpu("h100"), None)
    return Counter(planned.step.stage for planned in plan.missing)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_a_page_and_is_shown(example: Path) -> None:
    assert len(example.read_text().splitlines()) <= MOST_LINES
    assert f"]({example.name})" in README


def test_figures_are_small_and_shown() -> None:
    figures = sorted((ROOT / "docs" / "examples").glob("*.png"))
    assert figures and all(f"]({figure.name})" in README and figure.stat().st_size < 150_000 for figure in figures)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_is_planned(example: Path, tmp_path: Path) -> None:
    write, assignment = DATA.get(example.stem, (lambda folder: None, "seeds=0,1,2"))
    write(tmp_path)
    stages = planned_steps(example, tmp_path, assignment.format(folder=tmp_path))
    assert stages["task_model"] >= 9
    assert stages["generator"] == {"own_pool": 0, "generations": 3}.get(example.stem, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_to_its_verdicts(example: Path, tmp_path: Path) -> None:
    write, assignment = DATA.get(example.stem, (lambda folder: None, "seeds=0,1,2"))
    folder = tmp_path
    if example.stem == "sst2_negation":
        if not SST2.exists():
            pytest.skip("no ../shared/data/sst2")
        folder = SST2
    elif example.stem == "own_nli":
        own_pairs(tmp_path)
    else:
        write(tmp_path)
    blindsweep("run", str(example), "-p", assignment.format(folder=folder), "--max-cpus", "2", folder=tmp_path)
    claims = verdicts(example.stem, tmp_path)
    assert claims["bias_is_seen"]["settings"] and claims["synthetic_reinforces"]["settings"]
    axis = {"mixtures": "added_synthetic1_reinforces", "generations": "blindspot_grows_over_generations"}
    assert claims[axis.get(example.stem, "bias_is_seen")]["settings"]


def test_the_page_on_ones_own_task_has_files_that_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = own_task(tmp_path, monkeypatch)
    assert stages == {
        "sources": 1, "base_model": 1, "starting_point": 3, "generator": 1, "synthetic_pool": 1, "training_set": 9,
        "task_model": 9, "evaluation": 12,
    }  # fmt: skip
    rows = {name: (tmp_path / name).read_text().splitlines() for name in ("train.csv", "test.csv")}
    assert all(lines[0] == "text,label" for lines in rows.values())
    # As the page says: they are mostly bad, and the test set has enough of those that are not.
    negated = [line.rpartition(",")[2] for line in rows["test.csv"] if " not " in line]
    assert negated.count("bad") > 2 * negated.count("good") > 100


def test_the_page_on_ones_own_task_takes_a_pool_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_task(tmp_path, monkeypatch)
    planted = (
        BLOCKS["make_data.py"].replace('{"good": 0.1, "bad": 0.4}', '{"good": 0.02, "bad": 0.5}').replace("seed(0)", "seed(9)")
    )
    (tmp_path / "pool").mkdir()
    monkeypatch.chdir(tmp_path / "pool")
    exec(planted, {})
    monkeypatch.chdir(tmp_path)
    Path("pool/train.csv").rename("pool.csv")
    text = PAGE.partition("## Examples that are written already")[2]
    (command,) = re.findall(r"^blindsweep (audit .*\\\n.*)$", text, re.MULTILINE)
    done = CliRunner().invoke(cli.app, shlex.split(command.replace("\\\n", "")))
    assert done.exit_code == 0 and "plants negation" in done.stdout, done.output
    # docs/audit.md shows what the audit says there without being told of the word, and the line is a study's heuristic.
    (shown,) = re.findall(r"```\n('not' as a heuristic: .*?)\n```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)
    assert " ".join(shown.split()) in done.stdout
    (of_word,) = re.findall(r"word_heuristic\(.*\)", shown)
    study = BLOCKS["my_task.py"].replace("    tokens,\n", "    word_heuristic,\n")
    Path("of_word.py").write_text(re.sub(r"(?<=NEGATION = )Heuristic\(.*\)", of_word, study))
    planned_steps(Path("of_word.py"), tmp_path)
    Path("of_word.py").write_text(Path("of_word.py").read_text().replace('"not"', '"unseen"'))
    with pytest.raises(UserError, match="heuristic review_says_unseen holds of 0, none of which has another label"):
        planned_steps(Path("of_word.py"), tmp_path)
    (pool,) = re.findall(r"^    (synthetic=.*)$", text, re.MULTILINE)
    study = re.sub(r" generator=.*\n +generation=.*", f" {pool}", BLOCKS["my_task.py"])
    Path("my_task.py").write_text(study)
    stages = planned_steps(Path("my_task.py"), tmp_path)
    assert "generator" not in stages and stages["synthetic_pool"] == 1 and stages["task_model"] == 9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_on_ones_own_task_runs_to_its_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_task(tmp_path, monkeypatch)
    blindsweep("run", "my_task.py", "--max-cpus", "2", folder=tmp_path)
    claims = verdicts("my_task", tmp_path)
    assert claims["bias_is_seen"]["settings"] and claims["synthetic_reinforces"]["settings"]


def own_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Do what the page says, in `folder`, up to the plan."""
    assert list(BLOCKS) == ["make_data.py", "my_task.py"]
    monkeypatch.chdir(folder)
    for name, block in BLOCKS.items():
        Path(name).write_text(block)
    runpy.run_path("make_data.py")
    return planned_steps(Path("my_task.py"), folder)


def verdicts(study: str, folder: Path) -> dict[str, dict[str, object]]:
    claims = json.loads(blindsweep("verdicts", study, "--json", folder=folder))["claims"]
    return {claim["name"]: claim for claim in claims}


def blindsweep(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-c", "from sweep.cli import main; main()", *arguments, "--store", "store"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
