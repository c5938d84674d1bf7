"""A data set on the hub as its client sees it, from a server on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.tables.hub import hub_path
from tests.hub_server import COMMIT, HubHandler, asked, serving

LABELS = ("entailment", "neutral", "contradiction")
FILES = {
    "data/train.csv": "premise,hypothesis,label\n" + "".join(f"{label} {n},h,{label}\n" for label in LABELS for n in (1, 2)),
    "data/test.csv": "premise,hypothesis,label\na,b,neutral\n",
    "README.md": "?",
}
PROGRAM = """
import json, sys
from pipelines.data.table_sources import TableSources
from pipelines.errors import UserError
sources = TableSources(sys.argv[1], general="hf://datasets/open/pairs/data/test.csv")
found = {"missing": sources.missing("")}
try:
    if sys.argv[2] == "fetch":
        found["counts"] = dict(sources.counts(""))
        found["missing_then"] = sources.missing("")
except UserError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""


class Hub(HubHandler):
    """One open data set; no other is there."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/open/pairs" not in path:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            tree = [{"type": "file", "path": file, "size": len(text), "oid": "1" * 40} for file, text in FILES.items()]
            return self.answer(200, json.dumps(tree).encode())
        if "/api/datasets/" in path:
            siblings = [{"rfilename": file} for file in FILES]
            return self.answer(200, json.dumps({"id": "open/pairs", "sha": COMMIT, "siblings": siblings}).encode())
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        if name not in FILES:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.answer(200, FILES[name].encode(), {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving(Hub) as address:
        yield address


def looked_for(train: str, what: str, home: Path, endpoint: str) -> dict:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    return asked(PROGRAM, [train, what], home, endpoint)


def test_files_of_a_data_set_are_fetched_by_a_run_and_named_by_a_plan(endpoint: str, tmp_path: Path) -> None:
    train = "hf://datasets/open/pairs@main/data/train.csv"
    planned = looked_for(train, "plan", tmp_path, endpoint)
    assert planned == {
        "missing": [
            f"{path} is not in the Hugging Face cache; a run fetches it"
            for path in (train, "hf://datasets/open/pairs/data/test.csv")
        ]
    }
    fetched = looked_for(train, "fetch", tmp_path, endpoint)
    assert fetched["counts"]["train/num_examples"] == 3 and fetched["counts"]["test/neutral"] == 1
    assert fetched["missing_then"] == []
    assert not list(tmp_path.rglob("README.md"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("hf://datasets/none/pairs/train.csv", "hf://datasets/none/pairs/train.csv cannot be fetched from http://127.0.0.1"),
        ("hf://datasets/open/pairs/data/absent.csv", "absent.csv does not exist"),
    ],
)
def test_what_the_hub_does_not_have_is_named(endpoint: str, tmp_path: Path, train: str, message: str) -> None:
    assert message in looked_for(train, "fetch", tmp_path, endpoint)["error"]


def test_an_address_without_a_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="names no data set; write hf://datasets/ORG/NAME/FILE"):
        hub_path("hf://datasets/pairs", download=False)
