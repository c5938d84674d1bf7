"""Makes `.venv`: a Python 3.11 or 3.12, the pinned packages, the libraries they need, and this project installed in place.

    python3 scripts/setup.py                  # what `make setup` runs
    python3 scripts/setup.py --extra cuda     # for machines with NVIDIA GPUs
    .venv/bin/python scripts/setup.py --lock  # what `make lock` runs: writes constraints/ anew

Standard library only, and any Python from 3.8 may run it: it looks for the right one itself.

pip does the installing, of all pins and of nothing else (`--no-deps`), so that constraints/cpu-excludes.txt stays out; its own
settings say where packages come from. uv is for `--lock` alone: it resolves for another Python than the one that runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints"
UV = "uv==0.13.9"
PYTHONS = ((3, 12), (3, 11))
EXTRAS = ("cpu", "cuda")
# Measured with these pins, then rounded up: a full disk in the middle leaves a half-made environment.
NEEDED_GB = {"cpu": 6, "cuda": 20}
# Shared libraries that the packages take from the system, with Debian's package of each: all but glibc's, which Python
# itself runs on, and a GPU's driver. tests/test_setup.py reads the installed packages for what they need.
COMPILER_LIBRARIES = {"libgcc_s.so.1": "libgcc-s1", "libstdc++.so.6": "libstdc++6", "libz.so.1": "zlib1g"}
LIBRARIES = {"cpu": {**COMPILER_LIBRARIES, "libnuma.so.1": "libnuma1"}, "cuda": COMPILER_LIBRARIES}
# torch's CPU builds (the `+cpu` versions) are not on PyPI. A mirror of this page may be named instead, or "" for none.
TORCH_CPU_PAGE = os.environ.get("TORCH_CPU_PAGE", "https://download.pytorch.org/whl/cpu/torch/")


class SetupError(Exception):
    """Something on this machine has to change first; the message says what."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


# --- which Python ----------------------------------------------------------------------------------


def describe(command: str, extra: str) -> dict | str:
    """The version and path of a Python, or the reason why it cannot be used for this extra."""
    # Run it: a version manager's stand-in can exist and still fail.
    probe = (
        "import sys, json, venv, ensurepip, sysconfig, os.path as p;"
        "headers = p.exists(p.join(sysconfig.get_path('include'), 'Python.h'));"
        # In an active environment (perhaps the one to be made anew) the Python below it is meant.
        "print(json.dumps([getattr(sys, '_base_executable', sys.executable), sys.version_info[:2], headers]))"
    )
    try:
        done = subprocess.run([command, "-c", probe], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        hint = "; install its venv package" if "ensurepip" in last or "venv" in last else ""
        return f"does not run ({last}{hint})"
    executable, version, has_headers = json.loads(done.stdout)
    if tuple(version) not in PYTHONS:
        return "is Python {}.{}, and 3.11 or 3.12 is needed".format(*version)
    if extra == "cuda" and not has_headers:
        return "has no C headers, which Triton compiles with on a GPU; install python{}.{}-dev".format(*version)
    return {"path": executable, "version": tuple(version)}


def find_pythons(requested: str | None, extra: str) -> tuple[list[dict], list[str]]:
    """The usable Pythons in order of preference, and a line for each that was turned down."""
    usable: list[dict] = []
    refused: list[str] = []
    for command in [requested] if requested else ["python3.12", "python3.11", "python3", "python"]:
        if shutil.which(command) is None:
            refused.append(f"{command}: not found")
            continue
        python = describe(command, extra)
        if isinstance(python, str):
            refused.append(f"{command}: {python}")
        elif python["version"] not in [other["version"] for other in usable]:
            usable.append(python)
    return usable, refused


def pinned(package: str, constraints: Path) -> str:
    """The version that a constraints file pins a package to."""
    for line in constraints.read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.split("==")[1].strip()
    raise SetupError(f"{constraints.name} pins no {package}; write it anew with `make lock`")


def constraints_for(extra: str, version: tuple[int, int]) -> Path:
    return CONSTRAINTS / "{}-py{}{}.txt".format(extra, *version)


# --- where packages come from ----------------------------------------------------------------------


def pip(*arguments: str) -> list[str]:
    """The command of `.venv`'s own pip."""
    return [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def make_with_torch(pythons: list[dict], is_kept: bool, extra: str) -> dict:
    """Makes `.venv` with the first of these Pythons for which the pinned torch is to be had, and installs that; which it is.

    PyPI has no CPU builds: pip's own places are asked first, for each Python, and only then PyTorch's page.

    Raises:
        SetupError: it is nowhere; says what was looked for and where.
    """
    looked = []
    for page in ["", TORCH_CPU_PAGE] if extra == "cpu" else [""]:
        for python in pythons:
            name = "Python {}.{}".format(*python["version"])
            where = page or "the places that pip is set up for"
            torch = "torch " + pinned("torch", constraints_for(extra, python["version"]))
            say(f"making .venv with {name} ({python['path']}), and {torch} from {where}")
            if not is_kept:
                subprocess.run([python["path"], "-m", "venv", "--clear", str(VENV)], check=True)
            # `==2.13.0` would take 2.13.0+cpu as well, where pip sees both.
            install = pip("install", "--quiet", "--no-deps", "--no-compile", torch.replace(" ", "==="))
            extra_place = ["--retries", "1", "--find-links", page] if page else []
            done = subprocess.run([*install, *extra_place], stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                return python
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            looked.append(f"{name}, {where}: {last}")
    raise SetupError(
        f"{torch} is not to be had (Linux, x86_64):\n  "
        + "\n  ".join(looked)
        + ("\nMake PyTorch's page reachable, or put that wheel into a folder and name it: "
           "`pip config set global.find-links FOLDER`. PyPI does not carry it." if extra == "cpu" else "")
    )  # fmt: skip


# --- shared libraries of the system ----------------------------------------------------------------


def missing_libraries(python: str, extra: str) -> dict[str, str]:
    """The part of LIBRARIES that this Python cannot load, with Debian's package of each."""
    probe = "import ctypes, sys\nfor name in sys.argv[1:]:\n try: ctypes.CDLL(name)\n except OSError: print(name)"
    command = [python, "-c", probe, *LIBRARIES[extra]]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: package for name, package in LIBRARIES[extra].items() if name in printed.split()}


def apt_get(command: list[str], folder: Path, options: Sequence[str] = ()) -> str | None:
    """Runs apt-get in `folder`, once more with fresh lists of packages where it fails; why it failed then, or None."""

    def run(*arguments: str) -> str | None:
        done = subprocess.run(
            ["apt-get", "-q", *options, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return lines[-1] if done.returncode else None

    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    if run(*command) is None:
        return None
    # Otherwise apt-get calls it a success when a list cannot be fetched.
    stale = run("-o", "APT::Update::Error-Mode=any", "update")
    failed = run(*command)
    return failed and (stale or failed)


def bring_libraries(python: str, extra: str, folder: Path) -> list[Path]:
    """Has the system install what is missing of LIBRARIES where it may, else unpacks it in `folder`; what was unpacked.

    Raises:
        SetupError: neither works; says what to install.
    """
    missing = missing_libraries(python, extra)
    if not missing:
        return []
    why = "there is no apt-get here"
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        if os.geteuid() == 0:
            say(f"{', '.join(missing)} is missing: installing {' '.join(missing.values())} by apt-get")
            apt_get(["install", "--yes", "--no-install-recommends", *missing.values()], folder)
            missing = missing_libraries(python, extra)
            if not missing:
                return []
        say(f"{', '.join(missing)} is missing: unpacking Debian's {' '.join(missing.values())} into .venv")
        # An ordinary user can write neither the system's lists of packages nor its cache.
        options = ["-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::Cache={folder / 'cache'}"]
        (folder / "state/lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        why = apt_get(["download", *missing.values()], folder, options) or "the downloaded packages lack it"
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")], check=True)
    unpacked = {file.name: file for file in folder.glob("unpacked/**/*.so*")}
    if any(name not in unpacked for name in missing):
        raise SetupError(
            f"{', '.join(missing)} is missing, which the packages need. Install it ({' '.join(missing.values())} on Debian "
            f"and Ubuntu), then run this again. It could not be done from here: {why}"
        )
    return [unpacked[name] for name in missing]


def load_first(libraries: list[Path]) -> None:
    """Copies libraries into `.venv` and has each of its Pythons load them as it starts.

    Packages that take a library from the system name no folder to look for it in. One that the process has loaded
    already is used instead, whatever its folder.
    """
    folder = VENV / "lib" / "system"
    folder.mkdir(exist_ok=True)
    for library in libraries:
        shutil.copy(library, folder)
    lines = [f"import ctypes; ctypes.CDLL({str(library)!r})\n" for library in sorted(folder.iterdir())]
    (site_packages,) = VENV.glob("lib/python3*/site-packages")
    (site_packages / "system_libraries.pth").write_text("".join(lines))


# --- the work --------------------------------------------------------------------------------------


def check_machine(extra: str) -> None:
    machine = f"{platform.system()} on {platform.machine()}"
    if machine != "Linux on x86_64":
        raise SetupError(
            f"this is {machine}; the pinned packages were put together for Linux on x86_64. Use such a\n"
            "machine or a container (linux/amd64). `uv pip install -e '.[cpu]'` by hand is untried elsewhere."
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if not VENV.exists() and free_gb < NEEDED_GB[extra]:
        needed_gb = NEEDED_GB[extra]
        raise SetupError(f"{free_gb:.1f} GB are free here and about {needed_gb} GB are needed; make room first")
    if extra == "cuda" and not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise SetupError("no C compiler, and Triton compiles with one on a GPU: install gcc, or name one in CC")


def usable_environment(requested: str | None, extra: str) -> dict | None:
    """The Python of the `.venv` that is there, if it can be kept."""
    if not VENV_PYTHON.exists():
        return None
    present = describe(str(VENV_PYTHON), extra)
    if isinstance(present, str):
        return None
    if requested is not None:
        wanted = describe(requested, extra)
        if isinstance(wanted, str) or wanted["version"] != present["version"]:
            return None
    return present


def stamp(extra: str) -> Path:
    """The file that says that the installation is complete; the Makefile compares its age with the pins'."""
    return VENV / f".installed-{extra}"


def install(extra: str, requested: str | None) -> None:
    started = time.monotonic()
    check_machine(extra)
    pythons, refused = find_pythons(requested, extra)
    if not pythons:
        raise SetupError("no Python 3.11 or 3.12 that runs:\n  " + "\n  ".join(refused))
    other = [name for name in EXTRAS if name != extra and stamp(name).exists()]
    kept = None if other else usable_environment(requested, extra)
    if kept is not None:
        pythons = [kept]
    with tempfile.TemporaryDirectory() as folder:
        # An environment that is kept may have them from an earlier time.
        libraries = bring_libraries(str(VENV_PYTHON) if kept else pythons[0]["path"], extra, Path(folder))
        for name in EXTRAS:
            stamp(name).unlink(missing_ok=True)
        python = make_with_torch(pythons, kept is not None, extra)
        if libraries:
            load_first(libraries)

    say(f"installing the pinned packages ({extra})")
    # DeepSpeed ships as source: nothing of it is compiled before it is used.
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    pins = str(constraints_for(extra, python["version"]))
    subprocess.run(pip("install", "--no-deps", "--no-compile", "--requirement", pins), check=True, env=environment)
    subprocess.run(pip("install", "--no-deps", "--no-build-isolation", "--quiet", "--editable", str(ROOT)), check=True)
    # By all processors, and now: otherwise the first `import` of this many packages would do it.
    subprocess.run([str(VENV_PYTHON), "-m", "compileall", "-qq", "-j", "0", str(VENV / "lib")], stdout=subprocess.DEVNULL)
    stamp(extra).write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    say(f"done in {time.monotonic() - started:.0f} s; the command is .venv/bin/blindsweep")


def lock_sources() -> dict[str, str]:
    """uv's environment variables for where packages come from, by pip's settings; what the user has set is left alone."""
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for setting, name in names.items():
        done = subprocess.run(
            pip("config", "get", f"global.{setting}"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if done.stdout.split():
            variables[name] = (" " if name == "UV_INDEX" else ",").join(done.stdout.split())
    return {**variables, **os.environ}


def lock() -> None:
    """Writes the constraints files anew, one for each extra and Python, for Linux on x86_64."""
    subprocess.run(pip("install", "--quiet", UV), check=True)
    sources = lock_sources()
    places = [*filter(None, [sources.get("UV_FIND_LINKS"), TORCH_CPU_PAGE])]
    failed = []
    for extra in EXTRAS:
        for version in reversed(PYTHONS):
            target = constraints_for(extra, version)
            environment = {**sources, "UV_CUSTOM_COMPILE_COMMAND": "make lock"}
            # With the CPU build in sight the CUDA extra would take it.
            environment["UV_FIND_LINKS"] = ",".join(places) if extra == "cpu" else ""
            command = [str(VENV / "bin" / "uv"), "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate"]
            command += ["--python-version", "{}.{}".format(*version), "--python-platform", "x86_64-manylinux_2_28"]
            for name in (extra, "dev", "cluster"):
                command += ["--extra", name]
            command += ["--output-file", str(target)]
            if extra == "cpu":
                command += ["--excludes", str(CONSTRAINTS / "cpu-excludes.txt")]
            done = subprocess.run(command, cwd=ROOT, env=environment)
            if done.returncode != 0:
                failed.append(target.name)
    if failed:
        raise SetupError(f"could not resolve, and left as they were: {', '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--extra", default="cpu", choices=EXTRAS, help="which torch and vLLM (default: cpu)")
    parser.add_argument("--python", default=None, help="the Python to use (default: the first that fits)")
    parser.add_argument("--lock", action="store_true", help="write the constraints anew and install nothing")
    arguments = parser.parse_args()
    try:
        if arguments.lock:
            lock()
        else:
            install(arguments.extra, arguments.python or None)
    except SetupError as error:
        sys.exit(f"setup: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup: failed with status {error.returncode}, see above: {' '.join(map(str, error.cmd))}")


if __name__ == "__main__":
    main()
