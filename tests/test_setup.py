"""scripts/setup.py: what it reads, and what it looks for, before it installs anything."""

import ast
import os
import subprocess
import sys

import pytest

from scripts import setup


@pytest.fixture
def pip_files(tmp_path, monkeypatch):
    """Empty places for pip's files, and none of this machine's settings in the environment."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{tmp_path / 'system'}:{tmp_path / 'other'}")
    files = {
        "system": tmp_path / "system/pip/pip.conf",
        "legacy": tmp_path / "home/.pip/pip.conf",
        "user": tmp_path / "user/pip/pip.conf",
        "chosen": tmp_path / "chosen.conf",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    return files


def settings_of_pip(names):
    """The same from pip itself, where a section is named with each."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    by_key = dict(line.split("=", 1) for line in listed.splitlines())
    wanted = {}
    for section in ("global", "install", ":env:"):
        for name in names:
            # A setting without a value is listed, and then not used.
            if words := ast.literal_eval(by_key.get(f"{section}.{name}", "''")).split():
                wanted[name] = words
    return wanted


NAMES = ("find-links", "extra-index-url", "trusted-host", "index-url", "proxy")


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, {}),
        ({"system": "[global]\nfind-links = /a /b\n"}, {}, {"find-links": ["/a", "/b"]}),
        ({"system": "[global]\nextra_index_url =\n  /a\n  /b\n"}, {}, {"extra-index-url": ["/a", "/b"]}),
        ({"system": "[global]\nproxy = a\n", "legacy": "[global]\nproxy = b\n"}, {}, {"proxy": ["b"]}),
        ({"legacy": "[global]\nproxy = b\n", "user": "[global]\nproxy = c\n"}, {}, {"proxy": ["c"]}),
        ({"system": "[install]\nproxy = a\n", "user": "[global]\nproxy = b\n"}, {}, {"proxy": ["a"]}),
        ({"user": "[install]\nfind-links = /a\n"}, {"PIP_FIND_LINKS": "/c /d"}, {"find-links": ["/c", "/d"]}),
        ({"user": "[global]\nindex-url = https://a\n"}, {"PIP_INDEX_URL": ""}, {"index-url": ["https://a"]}),
        ({"user": "[global]\nproxy = a\n", "chosen": "[global]\ntrusted-host = b\n"}, "chosen", {"trusted-host": ["b"]}),
        ({"system": "[global]\nproxy = a\n", "chosen": "[install]\nproxy = b\n"}, "chosen", {"proxy": ["b"]}),
        ({"system": "[global]\nproxy = a\n"}, {"PIP_CONFIG_FILE": "/dev/null"}, {}),
        ({"user": "[global]\nproxy = a\n"}, {"PIP_CONFIG_FILE": "/no/such/file"}, {"proxy": ["a"]}),
        ({"user": "[list]\nproxy = a\n[global]\nproxy = 100%\n"}, {}, {"proxy": ["100%"]}),
    ],
)  # fmt: skip
def test_settings_are_pips_own_without_a_pip_to_ask(pip_files, monkeypatch, files, environment, expected):
    for name, text in files.items():
        pip_files[name].write_text(text)
    for name, value in ({"PIP_CONFIG_FILE": str(pip_files["chosen"])} if environment == "chosen" else environment).items():
        monkeypatch.setenv(name, value)
    settings = setup.pip_settings(sys.executable)
    assert {name: words for name, words in settings.items() if name in NAMES} == expected
    assert settings_of_pip(NAMES) == expected


def test_a_broken_file_of_pips_is_left_out_with_its_reason(pip_files, capsys):
    pip_files["system"].write_text("[global]\nproxy = a\n")
    pip_files["user"].write_text("no section\n")
    assert setup.pip_settings(sys.executable)["proxy"] == ["a"]
    assert f"leaving out pip's settings in {pip_files['user']}" in capsys.readouterr().out
