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
LAYOUTS = {
    **{f"{config}/{split}/0000.jsonl": f'{{"text": "{config} {split}"}}\n' for config in "ab" for split in ("train", "test")},
    **{f"shards/train-{n:05}-of-00002-{n}abc.csv": f"text\nshard {n}\n" for n in range(2)},
    "shards/test-00000-of-00001-2abc.csv": "text\ntest shard\n",
    "README.md": "?",
}
DATA_SETS = {"open/pairs": FILES, "open/layouts": LAYOUTS}
READING = """
import json, sys
from pipelines.errors import UserError
from pipelines.tables.columns import Wanted
from pipelines.tables.files import open_table
from pipelines.tables.hub import hub_path
from pipelines.tables.values import text_columns
found = {}
for address in sys.argv[1:]:
    try:
        before = hub_path(address, download=False)
        table = open_table(address, [Wanted("text")])
        texts = [text for raw in table.raw_batches() for text in text_columns(raw, table)[0]["text"].to_pylist()]
        found[address] = [before, hub_path(address, download=False) is not None, texts]
    except UserError as error:
        found[address] = str(error)
print(json.dumps(found))
"""
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
    """Two open data sets; no other is there."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = next((files for name, files in DATA_SETS.items() if f"/{name}" in path), None)
        if files is None:
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path:
            tree = [{"type": "file", "path": file, "size": len(text), "oid": "1" * 40} for file, text in files.items()]
            return self.answer(200, json.dumps(tree).encode())
        if "/api/datasets/" in path:
            siblings = [{"rfilename": file} for file in files]
            return self.answer(200, json.dumps({"id": "open/x", "sha": COMMIT, "siblings": siblings}).encode())
        name = path.rpartition(f"/resolve/{COMMIT}/")[2]
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        self.answer(200, files[name].encode(), {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": COMMIT})


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


def test_one_split_of_a_data_set_is_fetched_and_no_other_file(endpoint: str, tmp_path: Path) -> None:
    root = "hf://datasets/open/layouts"
    wanted = {
        f"{root}/a:train": ["a train"],
        f"{root}@main/b/test": ["b test"],
        f"{root}@refs/convert/parquet/b:train": ["b train"],
        f"{root}/shards:train": ["shard 0", "shard 1"],
        f"{root}/shards/test-*.csv": ["test shard"],
    }
    refused = {
        root: "has several folders with tables; give one of them: hf://datasets/open/layouts/a",
        f"{root}/a": "has several splits (test, train); give one of them, as in hf://datasets/open/layouts/a:train",
        f"{root}/shards:dev": "has no split 'dev'; it has test, train",
        f"{root}/shards/*.csv": "shards/*.csv has several splits (test, train)",
        f"{root}/none:train": "hf://datasets/open/layouts/none does not exist; the data set has README.md",
    }
    found = asked(READING, [*wanted, *refused], tmp_path, endpoint)
    assert {address: found[address] for address in wanted} == {
        address: [None, True, texts] for address, texts in wanted.items()
    }
    for address, message in refused.items():
        assert message in found[address]
    names = {path.name for path in tmp_path.rglob("snapshots/**/*") if path.is_file()}
    assert names == {"0000.jsonl", *(name.partition("/")[2] for name in LAYOUTS if name.startswith("shards/"))}
    assert not list(tmp_path.rglob("snapshots/*/a/test"))
    # Without the hub, what is in the cache is read.
    again = asked(READING, [f"{root}/a:train", f"{root}/a:test"], tmp_path, "http://127.0.0.1:1")
    assert again[f"{root}/a:train"][2] == ["a train"]
    assert "cannot be fetched from http://127.0.0.1:1" in again[f"{root}/a:test"]


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
