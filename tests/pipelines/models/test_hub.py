"""The hub as its client sees it, from a server on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import pretrained_model_config
from pipelines.identity import UNKNOWN
from pipelines.models.hub import hub_repository
from tests.hub_server import COMMIT, HubHandler, asked, serving

FILES = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickled"}


class Hub(HubHandler):
    """Three repositories: one open, one gated, one that is not there."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/gated/" in path:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        if "/open/" not in path:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        name = path.rsplit("/", 1)[-1]
        if "/tree/" in path:
            tree = [{"type": "file", "path": file, "size": len(text), "oid": "1" * 40} for file, text in FILES.items()]
            return self.answer(200, json.dumps(tree).encode())
        if "/api/models/" in path:
            siblings = [{"rfilename": file} for file in FILES]
            return self.answer(200, json.dumps({"id": "open/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        if name not in FILES:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.answer(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving(Hub) as address:
        yield address


def describe(model: str, home: Path, endpoint: str, **options: bool) -> dict[str, str]:
    """`pretrained_model_config` in a process of its own: the hub's client reads its settings when it is imported."""
    program = (
        "import sys, json; from pipelines.finetune.base_model import pretrained_model_config\n"
        "from pipelines.errors import UserError\n"
        "try:\n"
        "    config = pretrained_model_config(sys.argv[1], **json.loads(sys.argv[2]))\n"
        "    found = {file.name: file.sha256 for file in config.files}\n"
        "    print(json.dumps({'revision': config.revision, 'path': config.path, **found}))\n"
        "except UserError as error:\n"
        "    print(json.dumps({'error': str(error)}))\n"
    )
    return asked(program, [model, json.dumps(options)], home, endpoint)


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("meta-llama/Llama-2-7b-hf", ("meta-llama/Llama-2-7b-hf", "main")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("models/Llama-2-7b-hf", None),
        ("./org/name", None),
        ("org/name/file", None),
        ("org/model.gguf", None),
        ("name", None),
    ],
)
def test_what_names_a_repository(model: str, repository: tuple[str, str] | None) -> None:
    assert hub_repository(model) == repository


def test_a_folder_that_is_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_repository("org/name") is None


def test_a_repository_is_fetched_once_and_described_by_commit_and_hashes(endpoint: str, tmp_path: Path) -> None:
    absent = describe("open/tiny", tmp_path, endpoint, may_be_absent=True)
    assert absent == {"revision": "", "path": "open/tiny", "*.safetensors": UNKNOWN}
    found = describe("open/tiny@main", tmp_path, endpoint, download=True)
    assert found["revision"] == f"open/tiny@{COMMIT}"
    # printf weights | sha256sum
    assert found["model.safetensors"] == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert not list(tmp_path.rglob("*.bin"))
    # Now in the cache, with nobody to ask.
    assert describe("open/tiny", tmp_path, "http://127.0.0.1:1") == found


def test_what_cannot_be_had_is_one_error_with_the_ways_out(endpoint: str, tmp_path: Path) -> None:
    ways = ("https://huggingface.co/{}", "HF_TOKEN", "HF_ENDPOINT", "-p model=FOLDER")
    for model, reason in (("gated/tiny", "is gated"), ("none/tiny", "is not there"), ("open/tiny", "cannot be fetched")):
        where = "http://127.0.0.1:1" if reason == "cannot be fetched" else endpoint
        error = describe(model, tmp_path, where, download=True)["error"]
        assert error.startswith(f"{model} {reason}")
        assert "\n" not in error and all(way.format(model) in error for way in ways)
    assert "error" in describe("open/tiny", tmp_path, endpoint)


def test_a_missing_folder_says_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at .*/none.*org/name.*HF_TOKEN.*-p model=FOLDER"):
        pretrained_model_config(f"{tmp_path}/none")
    config = pretrained_model_config(f"{tmp_path}/none", may_be_absent=True, quantization="nf4")
    assert [file.sha256 for file in config.files] == [UNKNOWN] and not config.files[0].is_known
    assert config.quantization == "nf4"
