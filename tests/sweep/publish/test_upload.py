"""Repositories are brought to a hub on this machine, when asked, with the environment's token, which is not left anywhere."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sweep.graph.records import Record, Store
from tests.hub_server import COMMIT, HubHandler, asked, serving

TOKEN = "hf_ofnobodyatall"
PROGRAM = (
    "import json, sys; from typer.testing import CliRunner; from sweep import cli\n"
    "done = CliRunner().invoke(cli.app, sys.argv[1:])\n"
    "print(json.dumps({'code': done.exit_code, 'said': done.stdout, 'error': done.stderr}))"
)


class Hub(HubHandler):
    """Takes what it is given, from whoever has the token; `repositories` are names with their files and whether private."""

    repositories: ClassVar[dict[str, dict[str, Any]]] = {}

    def do_GET(self) -> None:
        self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer(200, b'{"errors": [], "warnings": []}')
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            # As a careless proxy would, it repeats what it was given.
            return self.answer(403, json.dumps({"error": f"no rights for {self.headers.get('Authorization')}"}).encode())
        if path == "/api/repos/create":
            asked_for = json.loads(body)
            name = f"{asked_for.get('type', 'model')}s/{asked_for['organization']}/{asked_for['name']}"
            self.repositories[name] = {"files": {}, "private": asked_for.get("private", asked_for.get("visibility"))}
            return self.answer(200, json.dumps({"url": f"http://{self.headers['Host']}/{name}"}).encode())
        repository, _, action = path.removeprefix("/api/").rpartition("/main")[0].rpartition("/")
        if action == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in json.loads(body)["files"]
            ]
            return self.answer(200, json.dumps({"files": files}).encode())
        assert action == "commit"
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.repositories[repository]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"http://{self.headers['Host']}/{repository.removeprefix('models/')}/commit/{COMMIT}"
        self.answer(200, json.dumps({"commitUrl": url, "commitOid": COMMIT, "success": True}).encode())


@pytest.fixture
def endpoint() -> Iterator[str]:
    Hub.repositories.clear()
    with serving(Hub) as address:
        yield address


def push(store: Store, folder: Path, home: Path, endpoint: str, token: str, *words: str) -> dict[str, Any]:
    arguments = ["publish", "tiny", str(folder), "--store", store.uri, "--no-audit", "--push", "org/demo", *words]
    return asked(PROGRAM, arguments, home, endpoint, token)


def test_each_repository_arrives_whole_and_private_and_the_token_is_left_nowhere(
    built: tuple[Store, dict[str, Record]], tmp_path: Path, endpoint: str
) -> None:
    done = push(built[0], tmp_path / "out", tmp_path / "home", endpoint, TOKEN)
    assert done["code"] == 0, done
    assert sorted(Hub.repositories) == ["datasets/org/demo-pool", "models/org/demo-generator"]
    for name, repository in Hub.repositories.items():
        folder = tmp_path / "out" / name.rpartition("demo-")[2]
        written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        sent = {path: content for path, content in repository["files"].items() if path != ".gitattributes"}
        assert sent == written
        assert repository["private"] in (True, "private")
    assert done["said"].count("pushed: ") == 2
    assert TOKEN not in json.dumps(done)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_refusal_is_one_error_without_the_token_and_keeps_what_is_written(
    built: tuple[Store, dict[str, Record]], tmp_path: Path, endpoint: str
) -> None:
    done = push(built[0], tmp_path / "out", tmp_path / "home", endpoint, "hf_ofanother", "--no-weights", "--public")
    assert done["code"] == 1 and Hub.repositories == {}
    assert "org/demo-pool could not be brought to the hub" in done["error"] and "what is written stays" in done["error"]
    assert "hf_ofanother" not in json.dumps(done)
    assert (tmp_path / "out" / "pool" / "README.md").is_file()
