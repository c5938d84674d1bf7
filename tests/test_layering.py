"""Who may import whom, read from the source: imports inside functions count, and those for type checkers only.

The house has three floors, analysis -> sweep -> pipelines, each with rooms. A new room is entered in `ARROWS`, a new use of a
heavy library in `HEAVY`.
"""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("pipelines", "sweep", "analysis")
MOST_FILES = 12
"""In a room, its `__init__.py` and names from before the rooms aside. With more it holds several kinds of thing."""

TASKS, TABLES, DATA, REPAIR = "pipelines.tasks", "pipelines.tables", "pipelines.data", "pipelines.repair"
PACKING, ADAPTERS = "pipelines.packing", "pipelines.adapters"
MODELS, FINETUNE, EVALUATE, GENERATE = (f"pipelines.{room}" for room in ("models", "finetune", "evaluate", "generate"))
WORKERS, EXPORT = "pipelines.workers", "pipelines.export"
PIPELINES = ("pipelines", TASKS, TABLES, REPAIR, DATA, PACKING, ADAPTERS, MODELS, WORKERS, FINETUNE, EVALUATE, GENERATE, EXPORT)
GRAPH, STUDY, PLAN, RUN, COMMANDS = "sweep.graph", "sweep.study", "sweep.plan", "sweep.run", "sweep.commands"
INDEX = "sweep.index"
LIVE = "sweep.live"
BUNDLES = "sweep.bundles"
UPKEEP = "sweep.commands.upkeep"
DOCTOR = "sweep.doctor"
CLUSTER = "sweep.cluster"
STATS, RESULTS, REPORT = "analysis.stats", "analysis.study", "analysis.report"
CORPUS, AUDIT = "analysis.corpus", "analysis.audit"
VERDICTS = "analysis.verdicts"
COMPARISON = "analysis.comparison"
PUBLICATION = "analysis.publication"
SIMULATION = "analysis.simulation"
SCAN = "sweep.scan"
CARDS, PUBLISH = "analysis.cards", "sweep.publish"

# Each room and the rooms that its files may import besides each other; a floor's name stands for the files that lie in no room.
ARROWS: Mapping[str, tuple[str, ...]] = {
    "pipelines": (),
    TASKS: ("pipelines",),
    TABLES: ("pipelines", TASKS),
    REPAIR: ("pipelines",),
    DATA: ("pipelines", TASKS, TABLES, REPAIR),
    PACKING: ("pipelines",),
    ADAPTERS: ("pipelines", PACKING),
    MODELS: ("pipelines", TASKS, PACKING, ADAPTERS),
    WORKERS: ("pipelines",),
    FINETUNE: ("pipelines", TASKS, PACKING, ADAPTERS, MODELS, WORKERS),
    EVALUATE: ("pipelines", TASKS, PACKING, ADAPTERS, MODELS, WORKERS),
    GENERATE: ("pipelines", TASKS, WORKERS),
    EXPORT: ("pipelines", TASKS, ADAPTERS, MODELS),
    GRAPH: PIPELINES,
    STUDY: (*PIPELINES, GRAPH),
    PLAN: (*PIPELINES, GRAPH, STUDY),
    INDEX: ("pipelines", WORKERS),
    LIVE: ("pipelines", GRAPH),
    BUNDLES: ("pipelines", GRAPH, LIVE),
    RUN: (*PIPELINES, GRAPH, STUDY, PLAN, INDEX, LIVE),
    DOCTOR: (*PIPELINES, GRAPH, STUDY, INDEX, RUN),
    CLUSTER: ("pipelines", WORKERS, PLAN),
    "analysis": ("pipelines", DATA),
    STATS: ("pipelines", "analysis"),
    RESULTS: (*PIPELINES, GRAPH, STUDY, "analysis", STATS),
    VERDICTS: (*PIPELINES, GRAPH, STUDY, "analysis", STATS, RESULTS),
    PUBLICATION: (*PIPELINES, GRAPH, STUDY, "analysis", STATS, RESULTS, VERDICTS, REPORT, CORPUS, AUDIT),
    COMPARISON: (*PIPELINES, GRAPH, STUDY, "analysis", STATS, RESULTS),
    REPORT: (*PIPELINES, GRAPH, STUDY, "analysis", STATS, RESULTS, VERDICTS),
    CORPUS: ("pipelines", TASKS, TABLES, "analysis", STATS),
    AUDIT: ("pipelines", TASKS, TABLES, REPAIR, "analysis", STATS, CORPUS),
    SCAN: ("pipelines", TASKS, TABLES, RUN, CORPUS),
    SIMULATION: ("pipelines", TASKS, "analysis", STATS, RESULTS, VERDICTS),
    CARDS: ("pipelines", TASKS, EXPORT, GRAPH, "analysis"),
    PUBLISH: (*PIPELINES, GRAPH, "analysis", STATS, RESULTS, CORPUS, AUDIT, CARDS),
    COMMANDS: (
        *PIPELINES,
        GRAPH,
        STUDY,
        PLAN,
        INDEX,
        LIVE,
        RUN,
        CLUSTER,
        SCAN,
        PUBLISH,
        "analysis",
        STATS,
        RESULTS,
        VERDICTS,
        COMPARISON,
        REPORT,
        CORPUS,
        AUDIT,
    ),
    UPKEEP: (*PIPELINES, GRAPH, STUDY, PLAN, INDEX, LIVE, BUNDLES, RUN, CLUSTER, DOCTOR, COMMANDS),
    # The command line, and what users' studies import.
    "sweep": (*PIPELINES, GRAPH, STUDY, PLAN, INDEX, LIVE, RUN, COMMANDS, UPKEEP),
}

# Each heavy library and the only rooms that may import it.
HEAVY: Mapping[str, tuple[str, ...]] = {
    "torch": (PACKING, ADAPTERS, MODELS, FINETUNE, EVALUATE, GENERATE, EXPORT),
    "triton": (PACKING, ADAPTERS, GENERATE),
    "transformers": (PACKING, MODELS, FINETUNE, EVALUATE, GENERATE, EXPORT),
    "peft": (FINETUNE,),
    "deepspeed": (FINETUNE,),
    "vllm": (GENERATE,),
    "ray": (WORKERS, FINETUNE, EVALUATE, GENERATE, RUN, CLUSTER, SCAN),
    "ray.tune": (RUN,),
    "mlflow": (INDEX, RUN),
    "pandas": ("analysis", RESULTS, VERDICTS, REPORT, CORPUS, AUDIT, PUBLICATION),
    "matplotlib": (REPORT,),
    "tests": (),
}

# What study files import: a public home, and three names from before the rooms were made. Each only hands names on.
SHIMS = ("pipelines/finetuning.py", "pipelines/heuristics.py", "sweep/experiment.py", "sweep/experiments.py")


@cache
def sources() -> Mapping[str, str]:
    """Path from the root of each file of the product, and its text."""
    return {str(path.relative_to(ROOT)): path.read_text() for top in FLOORS for path in sorted((ROOT / top).rglob("*.py"))}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(path: str) -> str:
    return str(Path(path).parent).replace("/", ".")


@cache
def imported_names(source: str, module: str) -> tuple[str, ...]:
    return tuple(_imported_names(source, module))


def _imported_names(source: str, module: str) -> Iterator[str]:
    """Every dotted name that `source` imports; `module`, its own name, resolves relative imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function in ("importlib.import_module", "import_module", "__import__"):
                yield str(node.args[0].value)


def file_of(name: str, files: Collection[str]) -> str | None:
    """The file that the import of a dotted name reads: the module itself, or the one that holds the name."""
    while name:
        stem = name.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in files:
                return path
        name = name.rpartition(".")[0]
    return None


def violations(path: str, source: str) -> list[str]:
    """The imports of one file, `path` being relative to the root, that neither `ARROWS` nor `HEAVY` allows."""
    room = room_of(path)
    if path in SHIMS:
        return []
    wrong = set()
    for name in imported_names(source, module_of(path)):
        heavy = max((library for library in HEAVY if f"{name}.".startswith(f"{library}.")), key=len, default=None)
        if heavy and room not in HEAVY[heavy]:
            wrong.add(f"{path} imports {heavy}, which is for {', '.join(HEAVY[heavy]) or 'no room'}")
        # The floor itself names no file: Ray sends it to the workers of a cluster, for one.
        if name.split(".")[0] in FLOORS and name != path.split("/")[0]:
            file = file_of(name, sources().keys()) or f"{name.replace('.', '/')}.py"
            if room_of(file) not in (room, *ARROWS[room]):
                wrong.add(f"{path} imports {name}: {room} may not import {room_of(file)}")
            if file in SHIMS:
                wrong.add(f"{path} imports {name}: {file} is for studies, the name is defined elsewhere")
    return sorted(wrong)


@pytest.mark.parametrize("path", sources())
def test_imports_run_along_the_arrows(path: str) -> None:
    assert violations(path, sources()[path]) == []


def test_the_arrows_of_the_rooms_make_no_circle() -> None:
    TopologicalSorter(ARROWS).prepare()


def test_no_files_import_each_other_in_a_circle() -> None:
    # A floor's and a room's __init__.py is read with each of its files, and takes nothing from them when it is.
    graph = {
        path: {
            file
            for name in imported_names(text, module_of(path))
            if (file := file_of(name, sources().keys())) not in (None, path)
        }
        for path, text in sources().items()
        if not path.endswith("__init__.py")
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_is_known_says_what_lives_there_and_is_not_crowded() -> None:
    assert {room_of(path) for path in sources()} == set(ARROWS)
    for room in ARROWS:
        folder = room.replace(".", "/")
        named_only = {path for path in sources() if path.endswith("__init__.py")}.union(SHIMS)
        files = [path for path in sources() if room_of(path) == room and path not in named_only]
        assert ast.get_docstring(ast.parse(sources()[f"{folder}/__init__.py"])), f"{folder} does not say what lives there"
        assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files"


def test_tests_mirror_the_rooms() -> None:
    folders = {str(path.parent.relative_to(ROOT / "tests")).replace("/", ".") for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - {".", "benchmarks", "chaos", "scripts"} <= set(ARROWS)
    assert set(ARROWS) - folders <= {"analysis"}


@pytest.mark.parametrize("path", SHIMS)
def test_the_old_names_of_what_studies_import_only_hand_it_on(path: str) -> None:
    statements = ast.parse(sources()[path]).body
    assert [type(node) for node in statements if not isinstance(node, ast.ImportFrom)] in (
        [ast.Expr],
        [ast.Expr, ast.Assign],
    )


@pytest.mark.parametrize(
    ("path", "source", "num_wrong"),
    [
        ("pipelines/data/a.py", "import sweep.graph.records", 1),
        ("pipelines/data/a.py", "from sweep.graph import records", 1),
        ("pipelines/finetune/a.py", "def f():\n    from ray import tune", 1),
        ("pipelines/finetune/a.py", "import ray.tune.search", 1),
        ("pipelines/finetune/a.py", "import ray.train, ray.data", 0),
        ("pipelines/data/a.py", "import importlib\nimportlib.import_module('mlflow')", 1),
        ("pipelines/data/a.py", "from ...sweep.graph import records", 1),
        ("pipelines/data/a.py", "from . import sources", 0),
        ("pipelines/data/a.py", "from pipelines.finetune.recipe import FinetuneConfig", 1),
        ("pipelines/data/a.py", "import sweeper", 0),
        ("sweep/commands/a.py", "from analysis.report import report", 0),
        ("sweep/study/a.py", "from analysis.report import report", 1),
        ("sweep/study/a.py", "from pipelines.tasks.examples import Label", 0),
        ("sweep/study/a.py", "from sweep import Experiment", 1),
        ("sweep/plan/a.py", "from sweep.experiments import demo", 2),
        ("pipelines/data/a.py", "from pipelines.heuristics import tokens", 1),
        ("sweep/run/a.py", "import sweep, pipelines", 0),
        ("sweep/graph/a.py", "from sweep.study import experiment", 1),
        ("analysis/study/a.py", "import torch", 1),
        ("analysis/study/a.py", "from sweep.graph.records import Store", 0),
        ("analysis/audit/a.py", "from analysis.study import frame", 1),
        ("analysis/stats/a.py", "import pandas", 1),
    ],
)
def test_a_forbidden_import_is_seen(path: str, source: str, num_wrong: int) -> None:
    assert len(violations(path, source)) == num_wrong


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("pipelines.tasks.prompts", ("torch", "transformers", "ray", "pandas")),
        ("pipelines.tasks.heuristics", ("torch", "transformers", "ray", "pandas")),
        ("pipelines.tasks.examples", ("torch", "transformers", "ray", "pandas")),
        ("pipelines.repair.rows", ("torch", "ray", "pandas", "scipy", "pyarrow")),
        ("sweep", ("torch", "transformers", "ray", "mlflow", "pandas", "pyarrow")),
        ("sweep.experiments", ("torch", "transformers", "ray", "mlflow", "pandas")),
        ("sweep.graph.records", ("torch", "transformers", "ray", "mlflow", "pandas")),
        ("sweep.app", ("torch", "transformers", "ray", "mlflow", "pandas", "matplotlib")),
        # By every process of a trial.
        ("sweep.run.tune", ("torch", "transformers", "ray", "mlflow", "pandas", "sweep.plan.costs")),
        ("analysis.study.frame", ("torch", "transformers", "ray", "mlflow")),
    ],
)
def test_it_is_light_to_import(module: str, heavy: tuple[str, ...]) -> None:
    """A pure core, and a command line that starts quickly: nothing heavy comes along, not even indirectly."""
    assert file_of(module, sources().keys()) in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py")
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    done = subprocess.run([sys.executable, "-c", program, *heavy], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
