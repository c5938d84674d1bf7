"""Makes `.venv`: a Python 3.11 or 3.12, the pinned packages, the libraries they need, and this project installed in place.

    python3 scripts/setup.py                  # what `make setup` runs
    python3 scripts/setup.py --extra cuda     # for machines with NVIDIA GPUs
    .venv/bin/python scripts/setup.py --lock  # what `make lock` runs: writes constraints/ anew

Standard library only, and any Python from 3.8 may run it: it looks for the right one itself.

uv does the installing: it can leave packages out (constraints/cpu-excludes.txt), pip cannot. uv does not read
pip's settings and gives up on an index that it cannot reach, so this script reads them (find-links, index-url,
extra-index-url, cert, trusted-host, proxy), hands them on and drops indexes that do not answer.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
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
PYPI = "https://pypi.org/simple"
# torch's CPU builds (the `+cpu` versions) are not on PyPI. A mirror of this page may be named instead.
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


def pip_settings(python: str) -> dict[str, list[str]]:
    """pip's settings from its files and environment, each a list of words. Debian's Python has no pip to ask for them."""
    home = Path(os.path.expanduser("~"))
    chosen = os.environ.get("PIP_CONFIG_FILE", "")
    system = os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [*(Path(folder, "pip/pip.conf") for folder in system.split(os.pathsep)), Path("/etc/pip.conf")]
    if not os.path.exists(chosen):
        files += [home / ".pip/pip.conf", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")]
    files += [Path(python).parents[1] / "pip.conf", Path(chosen)]

    # pip's own order: a later file overrides the same section of an earlier one, then [install] overrides [global],
    # then the environment overrides both.
    parser = configparser.RawConfigParser()
    for file in files if chosen != os.devnull else []:
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            say(f"leaving out pip's settings in {file}: {error}")
    given = [item for section in ("global", "install") if parser.has_section(section) for item in parser.items(section)]
    given += [(name[len("PIP_") :], value) for name, value in os.environ.items() if name.startswith("PIP_")]
    return {name.lower().replace("_", "-"): value.split() for name, value in given if value.split()}


def read_page(url: str) -> tuple[bytes, str | None]:
    """A page's bytes, or why it could not be read."""
    try:
        with urllib.request.urlopen(url, timeout=15) as page:
            return page.read(), None
    except (OSError, ValueError) as error:
        return b"", str(getattr(error, "reason", error))


def unreachable(index: str) -> str | None:
    """The reason why a package index cannot be used, or None. A missing page is an answer: the index is there."""
    parts = urllib.parse.urlsplit(index)
    if parts.scheme == "file" or not parts.scheme:
        path = Path(urllib.parse.unquote(parts.path))
        return None if path.is_dir() else "no such folder"
    if parts.scheme not in ("http", "https"):
        return f"{parts.scheme} is not looked at"
    try:
        request = urllib.request.Request(index.rstrip("/") + "/setuptools/", method="HEAD")
        with urllib.request.urlopen(request, timeout=15):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403, 404, 405) else f"answers {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))


def package_sources(python: str, extra: str) -> dict[str, str]:
    """uv's environment variables for where packages come from. Those that the user has set are left alone.

    Raises:
        SetupError: no package index can be reached.
    """
    pip = pip_settings(python)
    # These count for the look-ups here, too. What the user has set has the last word, here and below.
    if "cert" in pip:
        os.environ.setdefault("SSL_CERT_FILE", pip["cert"][0])
    if "proxy" in pip:
        os.environ.setdefault("HTTPS_PROXY", pip["proxy"][0])
        os.environ.setdefault("HTTP_PROXY", pip["proxy"][0])
    variables = {"UV_HTTP_TIMEOUT": "180"}
    if "trusted-host" in pip:
        variables["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"])

    find_links = []
    for place in pip.get("find-links", []):
        names, why = file_names(place)
        if why:
            say(f"leaving out pip's find-links {place}: {why}")
        elif extra == "cuda" and any(re.match(r"torch-[^-]*\+cpu-", name) for name in names):
            say(f"leaving out pip's find-links {place}: it has a CPU build of torch, which would be taken")
        else:
            find_links.append(place)
    if find_links:
        variables["UV_FIND_LINKS"] = ",".join(find_links)

    if not any(os.environ.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_NO_INDEX")):
        answering = []
        for index in [*pip.get("index-url", [PYPI]), *pip.get("extra-index-url", [])]:
            why = unreachable(index)
            if why:
                say(f"leaving out the package index {index}: {why}")
            else:
                answering.append(index)
        if not answering:
            raise SetupError(
                "no package index can be reached. Connect to the network, or name one that can be: "
                "`pip config set global.index-url URL` or UV_DEFAULT_INDEX=URL"
            )
        variables["UV_DEFAULT_INDEX"] = answering[0]
        if answering[1:]:
            variables["UV_INDEX"] = " ".join(answering[1:])
            # pip takes the best version from all of its indexes; uv stops at the first that has the name.
            variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: value for name, value in variables.items() if name not in os.environ}


def file_names(place: str) -> tuple[list[str], str | None]:
    """The files that a find-links place offers, or why it cannot be read."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme in ("http", "https"):
        page, why = read_page(place)
        links = re.findall(r"""href=["']([^"'#]+)""", page.decode("utf-8", "replace"))
        return [urllib.parse.unquote(link.rsplit("/", 1)[-1]) for link in links], why
    folder = Path(urllib.parse.unquote(parts.path))
    if not folder.is_dir():
        return [], "no such folder"
    return os.listdir(folder), None


def torch_wheel(python: dict) -> str:
    """The beginning of the file name of the pinned CPU build for this Python."""
    version = pinned("torch", constraints_for("cpu", python["version"]))
    return "torch-{0}-cp{1}{2}-cp{1}{2}".format(version, *python["version"])


def find_torch(pythons: list[dict], sources: dict[str, str]) -> dict:
    """The first of these Pythons for which the pinned CPU build of torch is to be had.

    Adds PyTorch's page to `sources` where that is what provides it.

    Raises:
        SetupError: it is nowhere; says what was looked for and where.
    """
    configured = os.environ.get("UV_FIND_LINKS") or sources.get("UV_FIND_LINKS", "")
    places = [place for place in configured.split(",") if place]
    looked = []
    for place in [*places, TORCH_CPU_PAGE]:
        names, why = file_names(place)
        for python in pythons:
            start = f"{torch_wheel(python)}-"
            if any(name.startswith(start) and name.endswith("x86_64.whl") for name in names):
                # The page is given as find-links, not as an index: an index would be asked for every package.
                if place not in places:
                    sources["UV_FIND_LINKS"] = ",".join([*places, place])
                return python
        looked.append(f"{place}: {why or 'has no such file'}")
    wanted = " or ".join(map(torch_wheel, pythons))
    raise SetupError(
        f"the CPU build of torch is missing: looked for {wanted} (Linux, x86_64) in\n  "
        + "\n  ".join(looked)
        + "\nMake PyTorch's page reachable, or put that wheel into a folder and name it: "
        "`pip config set global.find-links FOLDER`. PyPI does not carry it."
    )


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
    sources = package_sources(pythons[0]["path"], extra)

    other = [name for name in EXTRAS if name != extra and stamp(name).exists()]
    kept = None if other else usable_environment(requested, extra)
    if kept is not None:
        pythons = [kept]
    python = find_torch(pythons, sources) if extra == "cpu" else pythons[0]
    with tempfile.TemporaryDirectory() as folder:
        # An environment that is kept may have them from an earlier time.
        libraries = bring_libraries(str(VENV_PYTHON) if kept else python["path"], extra, Path(folder))
        for name in EXTRAS:
            stamp(name).unlink(missing_ok=True)
        if kept is None:
            say("making .venv with Python {}.{} ({})".format(*python["version"], python["path"]))
            subprocess.run([python["path"], "-m", "venv", "--clear", str(VENV)], check=True)
        if libraries:
            load_first(libraries)

    # Bytecode is compiled now: otherwise the first `import` of this many packages would compile it.
    environment = {**os.environ, **sources, "VIRTUAL_ENV": str(VENV)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(
        [str(VENV_PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV],
        check=True,
        env=environment,
    )
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(VENV_PYTHON), "--compile-bytecode"]
    command += ["--constraints", str(constraints_for(extra, python["version"]))]
    if extra == "cpu":
        command += ["--excludes", str(CONSTRAINTS / "cpu-excludes.txt")]
    command += ["--editable", f"{ROOT}[{extra},dev]"]
    say(f"installing the pinned packages ({extra})")
    # DeepSpeed ships as source: nothing of it is compiled before it is used.
    subprocess.run(command, check=True, cwd=ROOT, env={**environment, "DS_BUILD_OPS": "0"})
    stamp(extra).write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")
    say(f"done in {time.monotonic() - started:.0f} s; the command is .venv/bin/blindsweep")


def lock() -> None:
    """Writes the constraints files anew, one for each extra and Python, for Linux on x86_64."""
    sources = package_sources(sys.executable, "cpu")
    configured = os.environ.get("UV_FIND_LINKS") or sources.get("UV_FIND_LINKS", "")
    places = [*filter(None, configured.split(","))]
    if read_page(TORCH_CPU_PAGE)[1] is None:
        places.append(TORCH_CPU_PAGE)
    failed = []
    for extra in EXTRAS:
        for version in reversed(PYTHONS):
            target = constraints_for(extra, version)
            environment = {**os.environ, **sources, "UV_CUSTOM_COMPILE_COMMAND": "make lock"}
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
