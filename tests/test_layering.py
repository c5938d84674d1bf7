"""Imports go one way: analysis -> sweep -> pipelines. Read from the source: those inside functions count."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipelines", "sweep", "analysis")

# What each room may not import, and why. A name stands for itself and all that is below it.
FORBIDDEN = {
    "pipelines": {
        "sweep": "stages know nothing of grids and stores",
        "analysis": "stages know nothing of results",
        "mlflow": "stages report through a function that they are given",
        "ray.tune": "stages do not know that they are scheduled",
        "tests": "tests are not installed",
    },
    "sweep": {
        "analysis": "only the command line sits above both",
        "torch": "model code belongs to the stages",
        "transformers": "model code belongs to the stages",
        "peft": "model code belongs to the stages",
        "deepspeed": "model code belongs to the stages",
        "vllm": "model code belongs to the stages",
        "tests": "tests are not installed",
    },
    "analysis": {
        "ray": "results are read where there is no cluster",
        "torch": "results are read where there is no model",
        "transformers": "results are read where there is no model",
        "vllm": "results are read where there is no model",
        "deepspeed": "results are read where there is no model",
        "peft": "results are read where there is no model",
        "mlflow": "the records are what counts, MLflow is an index of them",
        "tests": "tests are not installed",
    },
}
# The command line sits on top of all three rooms.
ALLOWED = {(path, "analysis") for path in ("sweep/cli.py", "sweep/command_audit.py", "sweep/command_results.py")}


def imported_names(source: str, module: str) -> Iterator[str]:
    """Every dotted name that `source` imports; `module`, its own name, resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function in ("importlib.import_module", "import_module", "__import__"):
                yield str(node.args[0].value)


def violations(path: str, source: str) -> list[str]:
    """The forbidden imports of one file, `path` being relative to the repository."""
    module = path.removesuffix(".py").replace("/", ".")
    found = set()
    for name in imported_names(source, module):
        for forbidden, why in FORBIDDEN[path.split("/")[0]].items():
            inside = name == forbidden or name.startswith(f"{forbidden}.")
            if inside and (path, forbidden) not in ALLOWED:
                found.add(f"{path} imports {forbidden}: {why}")
    return sorted(found)


def source_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def test_every_room_is_looked_at() -> None:
    assert {path.split("/")[0] for path in source_files()} == set(ROOMS)


@pytest.mark.parametrize("path", source_files())
def test_imports_go_one_way(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "num_found"),
    [
        ("pipelines/a.py", "import sweep.records", 1),
        ("pipelines/a.py", "from sweep import records", 1),
        ("pipelines/a.py", "def f():\n    from ray import tune", 1),
        ("pipelines/a.py", "import ray.tune.search", 1),
        ("pipelines/a.py", "import ray.train, ray.data", 0),
        ("pipelines/a.py", "import importlib\nimportlib.import_module('mlflow')", 1),
        ("pipelines/a.py", "from ..sweep import records", 1),
        ("pipelines/a.py", "from . import prompts", 0),
        ("pipelines/a.py", "import sweeper", 0),
        ("sweep/command_results.py", "from analysis import report", 0),
        ("sweep/grid.py", "from analysis import report", 1),
        ("sweep/grid.py", "from pipelines.examples import Label", 0),
        ("analysis/frame.py", "import torch", 1),
        ("analysis/frame.py", "from sweep.records import Store", 0),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str, num_found: int) -> None:
    assert len(violations(path, source)) == num_found


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pipelines.prompts", ("torch", "transformers", "ray", "pandas")),
        ("pipelines.heuristics", ("torch", "transformers", "ray", "pandas")),
        ("pipelines.examples", ("torch", "transformers", "ray", "pandas")),
        ("sweep.records", ("torch", "transformers", "ray", "mlflow", "pandas")),
        ("sweep.cli", ("torch", "transformers", "ray", "mlflow", "pandas", "matplotlib")),
        ("analysis.frame", ("torch", "transformers", "ray", "mlflow")),
    ],
)
def test_it_is_light_to_import(module: str, heavy: tuple[str, ...]) -> None:
    """A pure core, and a command line that starts quickly: nothing heavy comes along, not even indirectly."""
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.fail(f"{module} is gone; name what took its place here")
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", program, *heavy], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
