"""From names and -p texts to an experiment; every mistake is one message that names the way out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from pipelines.errors import UserError
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import builtin_experiments, load_experiment, parse_parameters

ROOT = Path(__file__).parents[3]
STUDY = """\
from sweep import Experiment
from sweep.experiments import demo

def small(seeds: tuple[int, ...] = (7,)) -> Experiment:
    return demo(seeds=seeds)
"""


def function(
    number: int = 1,
    share: float = 0.5,
    name: str = "x",
    flag: bool = False,
    sizes: tuple[int, ...] = (),
    limit: int | None = 3,
    mode: Literal["fast", "slow"] = "fast",
) -> Experiment: ...


def test_values_are_parsed_by_the_signature() -> None:
    texts = [
        "number=1_000", "share=1e-3", "name=a=b", "flag=yes", "sizes=1, 2,3", "limit=none", "mode=slow",
    ]  # fmt: skip
    assert parse_parameters(function, texts) == {
        "number": 1000, "share": 0.001, "name": "a=b", "flag": True, "sizes": (1, 2, 3), "limit": None,
        "mode": "slow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numbr=1", r"no parameter 'numbr' \(did you mean 'number'\?\); valid: number, share"),
        ("number=one", "'one' is not a whole number"),
        ("sizes=1,b", "each is a whole number"),
        ("flag=maybe", "true or false"),
        ("mode=quick", "one of fast, slow"),
        ("number", "name=value"),
    ],
)
def test_a_wrong_parameter_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_parameters(function, [text])


def test_the_built_in_experiments() -> None:
    assert set(builtin_experiments()) == {"demo", "mini", "paper", "paper_fast", "study_qwen", "study_smollm", "rate_search"}
    loaded = load_experiment("demo", ["seeds=5"])
    assert loaded.experiment.seeds == (5,)
    assert loaded.parameters["seeds"] == [5] and "pool_size" in loaded.parameters


def test_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "my_study.py"
    file.write_text(STUDY)
    for name in (str(file), f"{file}:small"):
        assert load_experiment(name, ["seeds=1,2"]).experiment.seeds == (1, 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (STUDY.replace("return demo(", "return demo(]"), r"my_study\.py:5: .*demo"),
        (STUDY.replace("import demo", "import dmeo"), r"my_study\.py:2: ImportError: .*dmeo"),
        (STUDY.replace("demo(seeds=seeds)", "demo(seeds=seed)"), r"my_study\.py:5: NameError: .*'seed'"),
        (STUDY.replace("demo(seeds=seeds)", "demo(sedes=seeds)"), r"my_study\.py:5: TypeError: .*sedes"),
        (STUDY.replace("demo(seeds=seeds)", "demo(seeds=())"), r"my_study\.py:5: seeds=\(\)"),
        (STUDY.replace("demo(seeds=seeds)", "3"), "returned int, not an Experiment"),
        (STUDY.replace(" -> Experiment", ""), "no experiment function"),
        (STUDY + STUDY.replace("small", "large"), r"say which: .*:small, .*:large"),
    ],
)
def test_an_error_in_a_users_file_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    # Where studies are run from; code without a file would seem to be there, too.
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_study.py"
    file.write_text(source)
    with pytest.raises(UserError, match=message):
        load_experiment(str(file))


def test_a_file_that_changes_within_a_second_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "my_study.py"
    for seed in (7, 8):
        file.write_text(STUDY.replace("(7,)", f"({seed},)"))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        assert load_experiment(str(file)).experiment.seeds == (seed,)
    assert list(tmp_path.iterdir()) == [file]


def test_an_unknown_function_or_file(tmp_path: Path) -> None:
    (tmp_path / "my_study.py").write_text(STUDY)
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_experiment(f"{tmp_path}/my_study.py:smal")
    with pytest.raises(UserError, match="does not exist"):
        load_experiment(f"{tmp_path}/other.py")
    with pytest.raises(
        UserError, match=r"built in: demo, mini, paper, paper_fast, study_qwen, \w+, \w+ \(did you mean 'demo'\?\)"
    ):
        load_experiment("demos")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "from pipelines.no_such_room import GenerationConfig, GeneratorConfig as G",
            r'old\.py:2: there is no pipelines\.no_such_room; write "from sweep import GenerationConfig, GeneratorConfig"$',
        ),
        (
            "from sweep.records import (\n    Resources,\n)",
            r'old\.py:2: there is no sweep\.records; write "from sweep import Resources"$',
        ),
        (
            "from pipelines.compute import UNKNOWN, Resources",
            r'no pipelines\.compute; write "from sweep import Resources"; docs/reference/python\.md, .* has no UNKNOWN$',
        ),
        ("from sweep.paper import TASK_MODEL", r'no sweep\.paper; write "from sweep import PAPER_TASK_MODEL as TASK_MODEL"$'),
        ("from sweep.scheduler import RayOptions", r"old\.py:2: there is no sweep\.scheduler; .*docs/.*python\.md lists$"),
        ("import pipelines.no_such_room", r"old\.py:2: there is no pipelines\.no_such_room; .*docs/.*python\.md lists$"),
        ("from pipelines import compute", r"old\.py:2: there is no pipelines\.compute; .*docs/.*python\.md lists$"),
        ("from sweep.experiments import dmeo", r"old\.py:2: ImportError: cannot import name 'dmeo' from 'sweep\.experiments'$"),
        (
            "from sweep import Experiment as E, Experimnt",
            r"old\.py:2: ImportError: cannot import name 'Experimnt' from 'sweep' \(did you mean 'Experiment'\?\)$",
        ),
        (
            "from pipelines.heuristics import Heuristic, tokenz",
            r"'tokenz' from 'pipelines\.heuristics' \(did you mean 'tokens'\?\)$",
        ),
        ("from no_such_package import Resources", r"old\.py:2: ModuleNotFoundError: No module named 'no_such_package'$"),
    ],
)
def test_an_import_from_where_something_was_names_the_new_one(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "old.py"
    at_the_top = f"import math\n{line}\n{STUDY}"
    inside = STUDY.replace("    return", "    " + line.replace("\n", "\n    ") + "\n    return")
    file.write_text(at_the_top)
    with pytest.raises(UserError, match=message):
        load_experiment(str(file))
    file.write_text(inside)
    with pytest.raises(UserError, match=message.replace("py:2", "py:5")):
        load_experiment(str(file))


def test_an_old_import_in_a_file_beside_the_study_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import math\n\nfrom pipelines.generation import GenerationConfig\n")
    (tmp_path / "study.py").write_text(f"import beside\n{STUDY}")
    with pytest.raises(UserError, match=r'beside\.py:3: there is no pipelines\.generation; write "from sweep import Gen'):
        load_experiment(str(tmp_path / "study.py"))


def test_an_old_import_in_the_file_of_a_heuristic_is_told_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text("import math\nfrom pipelines.examples import Label\n")
    with pytest.raises(
        UserError, match=r"hold\.py:2 cannot be loaded \(.*'pipelines\.examples'\); import from sweep what docs"
    ):
        load_experiment("demo", [f"heuristic={tmp_path / 'hold.py'}:MINE"])


def test_a_study_file_from_before_sweep_handed_names_on_is_planned_as_ever() -> None:
    experiment = load_experiment(str(Path(__file__).with_name("old_study.py")), ["learning_rate=2e-3"]).experiment
    steps = build_grid(experiment)
    assert (experiment.heuristic.name, experiment.cell.learning_rate if experiment.cell else None) == ("shorter", 2e-3)
    assert sum(step.stage == "task_model" for step in steps) == 3


WITH_HEURISTIC = """\
import numpy as np
from sweep import Experiment, Heuristic, Label, tokens
from sweep.study.experiments import demo
from dataclasses import replace

WORDS = {"no", "not", "never"}

def negated(premises, hypotheses):
    return np.array([not WORDS.isdisjoint(tokens(text)) for text in hypotheses], dtype=bool)

NEGATION = Heuristic("negation", negated, predicts=Label.CONTRADICTION)

def negation() -> Experiment:
    study = demo()
    evaluation = replace(study.evaluation, heuristics=(NEGATION,))
    return replace(study, heuristic=NEGATION, biases=(0.5,), evaluation=evaluation)
"""


def test_a_heuristic_of_a_users_file_reaches_processes_that_do_not_have_the_file(tmp_path: Path) -> None:
    """As a config does that Ray sends to a worker: by its own pickle, with the file gone."""
    from ray import cloudpickle

    file = tmp_path / "negation.py"
    file.write_text(WITH_HEURISTIC)
    experiment = load_experiment(str(file)).experiment
    sets = [step.config for step in build_grid(experiment) if step.stage == "training_set"]
    sent = tmp_path / "sent.pickle"
    sent.write_bytes(cloudpickle.dumps(next(config for config in sets if config.bias == 0.5)))
    file.unlink()
    program = "import pickle, sys; c = pickle.load(open(sys.argv[1], 'rb')); print(c.heuristic(['a', 'a'], ['never a', 'a']))"
    done = subprocess.run([sys.executable, "-c", program, sent], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[ True False]", "")
