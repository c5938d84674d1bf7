"""A user's own `analysis` or `pipelines` beside a study does not come between ours, and is found, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEIRS = {
    "analysis/__init__.py": "from .plots import line\nRATE = 3\n",
    "analysis/plots.py": "def line():\n    return 'their line'\n",
    # Of a name that ours has, too.
    "analysis/report.py": "MINE = 1\n",
    "pipelines/clean.py": "def clean():\n    return 'their clean'\n",
    # No package of a study's: it is a script, and must not be run because ours is asked for.
    "pipelines/__init__.py": "import pathlib\npathlib.Path('was_run').touch()\n",
}
STUDY = """
from analysis import RATE
from analysis.plots import line
import analysis
from sweep import Experiment
from sweep.experiments import demo
def mine() -> Experiment:
    assert (analysis.RATE, analysis.line(), line()) == (RATE, "their line", "their line")
    return demo()
if __name__ == "__main__":
    import analysis.report
    from pipelines.errors import UserError
    print(mine().name, analysis.report.__doc__[:9])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in THEIRS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "study.py").write_text(STUDY)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in `folder`, which comes before ours on its path, as it does for a script that lies there and for `-c`."""
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


def printed(folder: Path, *arguments: str) -> list[str]:
    done = python(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("first", ["", "import sweep\n", "import analysis, sweep\n"])
def test_a_study_and_our_code_each_have_their_own_whichever_is_imported_first(folder: Path, first: str) -> None:
    (folder / "study.py").write_text(first + STUDY)
    assert printed(folder, "study.py") == ["demo A study's"]
    assert not (folder / "was_run").exists()


def test_a_package_of_theirs_is_run_when_something_of_it_is_asked_for(folder: Path) -> None:
    assert printed(folder, "-c", "import sweep; from pipelines import clean; print(clean.clean())") == ["their clean"]
    assert (folder / "was_run").exists()


def test_a_folder_without_init_and_a_single_file_of_theirs_are_found_too(folder: Path) -> None:
    (folder / "pipelines/__init__.py").unlink()
    for path in sorted((folder / "analysis").iterdir(), reverse=True):
        path.unlink()
    (folder / "analysis").rmdir()
    (folder / "analysis.py").write_text("def summary():\n    return 'theirs'\n")
    for first in ("sweep", "analysis"):
        program = (
            f"import {first}, sweep.experiments, analysis.wording\n"
            "from analysis import summary\nfrom pipelines.clean import clean\n"
            "print(summary(), clean(), analysis.wording.__name__)"
        )
        assert printed(folder, "-c", program) == ["theirs their clean analysis.wording"]


def test_what_nobody_has_is_missing_as_ever(folder: Path) -> None:
    program = """
import sweep
for text in ("import analysis.nothing", "from analysis import nothing", "import analysis; analysis.nothing"):
    try:
        exec(text)
    except (ImportError, AttributeError) as error:
        print(type(error).__name__)
"""
    assert printed(folder, "-c", program) == ["ModuleNotFoundError", "ImportError", "AttributeError"]


def test_a_module_of_the_name_of_one_of_ours_is_refused_where_it_was_imported_first(folder: Path) -> None:
    done = python(folder, "-c", "import analysis.report, sweep")
    assert done.returncode != 0
    assert f"{folder}/analysis/report.py was imported as analysis.report, and blindsweep has a module" in done.stderr


def test_the_command_line_takes_a_study_from_there(folder: Path) -> None:
    lines = printed(folder, "-m", "sweep.cli", "plan", "study.py", "--json")
    assert '"demo"' in "".join(lines)


def test_processes_of_an_audit_have_ours(folder: Path) -> None:
    program = """
import sweep, analysis.corpus.scan as scan, pyarrow as pa
from analysis.corpus.input import open_texts
if __name__ == "__main__":
    scan.SMALL_FILE_BYTES = 0
    table = pa.table({"premise": ["a b"] * 9, "hypothesis": ["a"] * 9, "label": ["entailment"] * 9})
    print(len(scan.scan_texts(open_texts(table), processes=2).label))
"""
    (folder / "audit_here.py").write_text(program)
    assert printed(folder, "audit_here.py") == ["9"]


def test_packages_that_lie_apart_are_ours_too_and_one_that_is_not_there_is_nobodys(folder: Path) -> None:
    """As on a cluster, to whose workers Ray brings each package in a folder of its own, and `analysis` not for a run."""
    for name in ("pipelines", "sweep"):
        (folder / f"brought_{name}").mkdir()
        (folder / f"brought_{name}" / name).symlink_to(ROOT / name)
    program = f"""
import sys
sys.path[:] = [{str(folder)!r}, *(f"{folder}/brought_{{name}}" for name in ("pipelines", "sweep")), *sys.path[2:]]
sys.path.remove({str(ROOT)!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
from sweep.own_packages import keep_ours
keep_ours()
import analysis.plots, pipelines.errors, sweep
print(sweep.__file__, pipelines.errors.__file__, analysis.plots.line())
"""
    ours = f"{folder}/brought_sweep/sweep/__init__.py {folder}/brought_pipelines/pipelines/errors.py their line"
    assert printed(folder, "-c", program) == [ours]


@pytest.mark.slow
def test_workers_of_ray_have_ours_though_the_users_folder_comes_first_on_their_path(folder: Path) -> None:
    program = """
import sweep
from sweep.run.session import RayOptions, ray_session
with ray_session(RayOptions(max_cpus=1), []):
    import ray
    from pipelines.storage import join
    print(ray.get(ray.remote(join).remote("of", "ours")))
"""
    (folder / "on_ray.py").write_text(program)
    assert printed(folder, "on_ray.py")[-1] == "of/ours"
    assert not (folder / "was_run").exists()
