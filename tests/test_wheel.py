"""The wheel has every room and every file that the product reads, and works without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("pipelines", "sweep", "analysis")


def test_a_wheel_has_all_files_of_the_product_and_plans_a_study(tmp_path: Path) -> None:
    # A copy: building leaves folders beside the sources.
    source = tmp_path / "source"
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, source / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    there = {str(path.relative_to(installed)) for floor in FLOORS for path in (installed / floor).rglob("*.*")}
    wanted = {str(path.relative_to(source)) for floor in FLOORS for path in (source / floor).rglob("*.*")}
    assert wanted - there == set()
    plan = "import sweep.cli; print(sweep.cli.__file__); sweep.cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", plan, "plan", "demo"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert "59 of 59 to build" in done.stdout
