"""All that a study's file imports comes from `sweep`, and costs nothing until it is asked for."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sweep
from pipelines.errors import UserError
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment

ROOT = Path(__file__).parents[2]
PAGES = "".join((ROOT / "docs" / name).read_text() for name in ("studies.md", "verdicts.md", "kinds.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
# Where they were when study files had to know.
OLD_HOMES = {
    "pipelines.base_model": (
        *("PretrainedModelConfig", "RandomModelConfig", "ScratchModelConfig"),
        *("pretrained_model_config", "random_model_config"),
    ),
    "pipelines.compute": ("Resources",),
    "pipelines.errors": ("UserError",),
    "pipelines.evaluation": ("EvaluationConfig",),
    "pipelines.examples": ("Label",),
    "pipelines.finetuning": ("FinetuneConfig", "LLAMA_PROJECTIONS"),
    "pipelines.generation": ("GenerationConfig",),
    "pipelines.generator": ("GeneratorConfig",),
    "pipelines.heuristics": ("HEURISTICS", "Heuristic", "LEXICAL_OVERLAP", "find_heuristic", "tokens"),
    "pipelines.prompts": ("EN_DASH", "HYPHENS"),
    "pipelines.sources": ("NLISourcesConfig", "nli_sources_config"),
    "pipelines.template_corpus": ("TemplateCorpusConfig",),
    "sweep.experiment": ("Experiment",),
}


def test_each_name_is_that_of_its_home_and_what_a_type_checker_sees() -> None:
    package = ast.parse((ROOT / "sweep" / "__init__.py").read_text())
    (block,) = (node for node in package.body if isinstance(node, ast.If))
    assert [ast.unparse(statement) for statement in block.body] == ["from sweep.study.public import *"]
    assert dir(sweep) == sorted(sweep.__all__)
    public = ast.parse((ROOT / "sweep" / "study" / "public.py").read_text())
    homes = {alias.name: node.module for node in public.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(sweep.__all__) == sorted(homes)
    for name, home in homes.items():
        assert getattr(sweep, name) is getattr(sys.modules[home], name)
        assert name in dir(sweep)
    with pytest.raises(AttributeError, match="'sweep' has no attribute 'Experimnt'"):
        _ = sweep.Experimnt


@pytest.mark.parametrize("block", BLOCKS)
def test_the_pages_files_can_be_planned(block: str, tmp_path: Path) -> None:
    file = tmp_path / "my_study.py"
    file.write_text(block)
    assert build_grid(load_experiment(str(file), ["seeds=3"]).experiment)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in OLD_HOMES.items() for name in names])
def test_a_file_with_an_old_import_loads_or_is_told_the_new_one(module: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text(
        f"from {module} import {name}\nimport sweep\nfrom sweep.experiments import demo\n"
        f"def old() -> sweep.Experiment:\n    assert {name} is sweep.{name}\n    return demo()\n"
    )
    try:
        assert load_experiment(str(file)).experiment.name == "demo"
    except UserError as error:
        assert str(error) == f'{file}:1: there is no {module}; write "from sweep import {name}"'


def test_records_are_read_without_what_only_an_experiment_needs() -> None:
    program = (
        "import sys, sweep.graph.records; print([name for name in sys.modules if name in ('numpy', 'sweep.study.experiment')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    "followed", ["skip", pytest.param("silent", marks=pytest.mark.slow)], ids=["the package alone", "all that it imports"]
)
def test_a_strict_type_checker_sees_the_public_names(followed: str, tmp_path: Path) -> None:
    file = tmp_path / "study.py"
    file.write_text(
        "from sweep import Experiment, Resources\nfrom sweep.experiments import demo\n\nprint(Experiment, Resources, demo)\n"
    )
    options = ["--strict", f"--follow-imports={followed}", "--ignore-missing-imports", f"--cache-dir={tmp_path}"]
    package = [str(ROOT / "sweep" / name) for name in ("__init__.py", "study/public.py", "experiments.py")]
    command = [sys.executable, "-m", "mypy", *options, str(file), *(package if followed == "skip" else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
