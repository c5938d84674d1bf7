"""The official files from a server of our own: whole, broken off, without ranges, wrong, moved, silent, unreachable."""

import fcntl
import hashlib
import io
import json
import os
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.data import downloads
from pipelines.data.challenge_sets import CHALLENGE_SETS, PublishedFile
from pipelines.data.downloads import Official, fetch_nli_data
from pipelines.data.sources import FILES, HANS_COLUMNS, HANS_FILE, MATCHED_FILE, MISMATCHED_FILE, TRAIN_FILE, nli_sources_config
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples

ROWS = [
    (label, f"{label} {number}.", f"So {number}.")
    for number in range(200)
    for label in ("entailment", "neutral", "contradiction")
]
SMALL = {"dev_rows_per_label": 1, "hans_rows": 3}


def multinli_lines(num_rows: int) -> bytes:
    rows = [{"gold_label": label, "sentence1": one, "sentence2": other} for label, one, other in ROWS[:num_rows]]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CONTENTS = {TRAIN_FILE: multinli_lines(600), MATCHED_FILE: multinli_lines(6), MISMATCHED_FILE: multinli_lines(9)}
HANS_ROW = ["entailment", "", "", "", "", "The a slept .", "The a slept .", "ex0", "subsequence", "ln_some", "temp1"]
HANS = "".join("\t".join(cells) + "\n" for cells in [HANS_COLUMNS, HANS_ROW, HANS_ROW, HANS_ROW]).encode()


def archive_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # Stored, so that the archive is longer than what one read of the client takes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVE = archive_of(
    {f"multinli_1.0/{name}": content for name, content in CONTENTS.items()}
    | {"multinli_1.0/README.txt": b"not wanted", "../escaped.txt": b"not wanted"}
)


class Server(ThreadingHTTPServer):
    """A server's files, and how it misbehaves: the lists are used up, an answer each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = {"multinli_1.0.zip": ARCHIVE, HANS_FILE: HANS}
        self.has_ranges = True
        self.statuses: list[int] = []
        self.breaks: list[int] = []  # so many bytes are sent before the connection is cut
        self.content_range = ""
        self.silence_s = 0.0
        self.log: list[tuple[str, str]] = []  # file, asked range

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what is tested."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, name = self.server, self.path[1:]
        server.log.append((name, self.headers.get("Range", "")))
        time.sleep(server.silence_s)
        if server.statuses and (status := server.statuses.pop(0)):
            self.send_error(status)
            return
        content, total = server.contents[name], len(server.contents[name])
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and server.has_ranges:
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", server.content_range or f"bytes {start}-{total - 1}/{total}")
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: server.breaks.pop(0)] if server.breaks else content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has what is official for this test."""
    monkeypatch.setattr(downloads, "PAUSE_S", 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(downloads, "OFFICIAL", official_of(server))
        yield server
        server.shutdown()


def official_of(server: Server, archive: bytes = ARCHIVE) -> tuple[Official, Official]:
    members = downloads.MULTINLI.members
    return (
        Official(server.url("multinli_1.0.zip"), hashlib.sha256(archive).hexdigest(), len(archive), members),
        Official(server.url(HANS_FILE), hashlib.sha256(HANS).hexdigest(), len(HANS)),
    )


class Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def assert_complete(folder: Path) -> None:
    """The official files, their Parquet and the record of origin; nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "origin.json", "parquet"])
    for name, content in (CONTENTS | {HANS_FILE: HANS}).items():
        assert (folder / name).read_bytes() == content
    assert read_examples(folder / "parquet" / "train.parquet").num_rows == 597


def test_the_pins_are_the_published_ones() -> None:
    # tensorflow/datasets: url_checksums/multi_nli.txt; huggingface/datasets: hans/dataset_infos.json.
    assert downloads.OFFICIAL == (downloads.MULTINLI, downloads.HANS)
    assert (downloads.MULTINLI.url, downloads.MULTINLI.num_bytes, downloads.MULTINLI.sha256) == (
        "https://cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip",
        226850426,
        "049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822",
    )
    assert (downloads.HANS.num_bytes, downloads.HANS.sha256) == (
        15462062,
        "c55b62feef9913070e88f38938dc2492018c945ac81f70139346472494124e79",
    )


def test_a_download_ends_with_files_parquet_and_origin(server: Server, tmp_path: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    origin = fetch_nli_data(tmp_path / "data", on_bytes=lambda *one: progress.append(one), **SMALL)
    assert_complete(tmp_path / "data")
    assert not (tmp_path / "escaped.txt").exists()
    assert json.loads((tmp_path / "data" / "origin.json").read_text()) == origin
    train = origin["files"][TRAIN_FILE]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", train.pop("time"))
    assert train == {
        "url": server.url("multinli_1.0.zip"),
        "archive": {
            "sha256": hashlib.sha256(ARCHIVE).hexdigest(),
            "bytes": len(ARCHIVE),
            "member": "multinli_1.0/multinli_1.0_train.jsonl",
        },
        "sha256": hashlib.sha256(CONTENTS[TRAIN_FILE]).hexdigest(),
        "bytes": len(CONTENTS[TRAIN_FILE]),
        "is_official": True,
    }
    assert "archive" not in origin["files"][HANS_FILE] and origin["files"][HANS_FILE]["is_official"] is True
    assert origin["parquet"]["metrics"]["train/num_labelled"] == 600
    assert ("multinli_1.0.zip", len(ARCHIVE), len(ARCHIVE)) in progress
    assert progress[-1] == (HANS_FILE, len(HANS), len(HANS))


def test_what_is_there_is_not_downloaded_again_and_what_was_damaged_is(server: Server, tmp_path: Path) -> None:
    first = fetch_nli_data(tmp_path, **SMALL)
    server.log.clear()
    assert fetch_nli_data(tmp_path, **SMALL) == first and not server.log
    (tmp_path / MATCHED_FILE).write_bytes(multinli_lines(3))
    assert fetch_nli_data(tmp_path, **SMALL)["files"][MATCHED_FILE]["is_official"]
    assert [name for name, _ in server.log] == ["multinli_1.0.zip"]
    assert_complete(tmp_path)


def test_hans_put_there_by_hand_is_known_by_its_checksum(server: Server, tmp_path: Path) -> None:
    (tmp_path / HANS_FILE).write_bytes(HANS)
    entry = fetch_nli_data(tmp_path, **SMALL)["files"][HANS_FILE]
    assert entry["copied_from"] == str(tmp_path) and entry["is_official"] is True
    assert [name for name, _ in server.log] == ["multinli_1.0.zip"]


def test_a_file_that_fetch_did_not_put_there_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / MATCHED_FILE).write_text("mine")
    with pytest.raises(UserError, match=rf"{MATCHED_FILE} is there.*move it away.*--from {tmp_path}"):
        fetch_nli_data(tmp_path, **SMALL)
    assert (tmp_path / MATCHED_FILE).read_text() == "mine" and not server.log


def test_a_connection_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks, say = [1000, 500], Lines()
    fetch_nli_data(tmp_path, say=say, **SMALL)
    assert [asked for _, asked in server.log] == ["", "bytes=1000-", "bytes=1500-", ""]
    assert say.count("multinli_1.0.zip: breaks off before the end; trying again") == 2
    assert_complete(tmp_path)


def test_an_interrupted_download_goes_on_with_the_next_command(server: Server, tmp_path: Path) -> None:
    (tmp_path / "multinli_1.0.zip.part").write_bytes(ARCHIVE[:2000])
    # Interrupted after the last byte, before it was put in its place.
    (tmp_path / f"{HANS_FILE}.part").write_bytes(HANS)
    fetch_nli_data(tmp_path, **SMALL)
    assert server.log == [("multinli_1.0.zip", "bytes=2000-")]
    assert_complete(tmp_path)


@pytest.mark.parametrize("left", [b"x" * 2000, b"x" * len(ARCHIVE), b"x" * (len(ARCHIVE) + 1)])
def test_a_part_of_something_else_costs_a_second_download_only(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "multinli_1.0.zip.part").write_bytes(left)
    fetch_nli_data(tmp_path, **SMALL)
    assert server.log[-2] == ("multinli_1.0.zip", "")
    assert_complete(tmp_path)


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.breaks = False, [1000, 2000]
    fetch_nli_data(tmp_path, **SMALL)
    assert [asked for _, asked in server.log] == ["", "bytes=1000-", "bytes=2000-", ""]
    assert_complete(tmp_path)


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.has_ranges, server.breaks = False, [1000] * 99
    with pytest.raises(
        UserError, match=rf"breaks off before the end, 3 times in a row \(1,000 of {len(ARCHIVE):,} bytes"
    ) as error:
        fetch_nli_data(tmp_path, **SMALL)
    assert "run the same command again" in str(error.value) and "--from" in str(error.value)
    # The first brought something.
    assert len(server.log) == 4
    server.breaks, server.has_ranges = [], True
    fetch_nli_data(tmp_path, **SMALL)
    assert server.log[4] == ("multinli_1.0.zip", "bytes=1000-")


def test_another_range_than_asked_for_is_not_appended(server: Server, tmp_path: Path) -> None:
    (tmp_path / "multinli_1.0.zip.part").write_bytes(ARCHIVE[:2000])
    server.content_range = f"bytes 0-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"
    fetch_nli_data(tmp_path, **SMALL)
    assert [asked for _, asked in server.log] == ["bytes=2000-", "", ""]
    assert_complete(tmp_path)


def test_a_range_that_is_refused_is_followed_by_the_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "multinli_1.0.zip.part").write_bytes(ARCHIVE[:2000])
    server.statuses = [416]
    fetch_nli_data(tmp_path, **SMALL)
    assert [asked for _, asked in server.log] == ["bytes=2000-", "", ""]


def test_wrong_bytes_are_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.contents["multinli_1.0.zip"] = b"x" * len(ARCHIVE)
    with pytest.raises(UserError, match=r"sent content with sha256 \w{12}…, the published one is \w{12}….*--from"):
        fetch_nli_data(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_length_is_refused_before_it_is_downloaded(server: Server, tmp_path: Path) -> None:
    server.contents["multinli_1.0.zip"] = b"<html>Please log in</html>"
    with pytest.raises(UserError, match=rf"offers 26 bytes, the published file has {len(ARCHIVE):,}.*--from"):
        fetch_nli_data(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_said_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match=r"multinli_1\.0\.zip answers 404 Not Found.*--from"):
        fetch_nli_data(tmp_path, **SMALL)
    assert len(server.log) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 0, 429]
    fetch_nli_data(tmp_path, **SMALL)
    assert_complete(tmp_path)


def test_a_failure_of_the_second_download_keeps_the_first(server: Server, tmp_path: Path) -> None:
    server.statuses = [0, 404]
    with pytest.raises(UserError, match="answers 404"):
        fetch_nli_data(tmp_path, **SMALL)
    server.log.clear()
    fetch_nli_data(tmp_path, **SMALL)
    assert [name for name, _ in server.log] == [HANS_FILE]


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_S", 0.05)
    server.silence_s = 0.5
    with pytest.raises(UserError, match=r"cannot be reached or breaks off \(timed out\), 3 times in a row"):
        fetch_nli_data(tmp_path, **SMALL)


def test_nobody_there(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = Official(f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip", "0" * 64, 9, {TRAIN_FILE: "a"})
        monkeypatch.setattr(downloads, "OFFICIAL", (nowhere,))
        with pytest.raises(UserError, match=r"a\.zip cannot be reached.*\(Connection refused\).*network and proxy.*--from"):
            fetch_nli_data(tmp_path, **SMALL)


def test_a_member_that_claims_too_much_and_an_archive_without_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"claims to have .* more than 1,000"):
        patch.setattr(downloads, "MAX_MEMBER_BYTES", 1000)
        fetch_nli_data(tmp_path / "a", **SMALL)
    other = archive_of({"multinli_1.0/other.jsonl": b""})
    server.contents["multinli_1.0.zip"] = other
    monkeypatch.setattr(downloads, "OFFICIAL", official_of(server, other))
    with pytest.raises(UserError, match=r"is not the archive it should be .*multinli_1.0_train.jsonl"):
        fetch_nli_data(tmp_path / "b", **SMALL)


def test_two_at_once_do_not_spoil_each_other_s_part(server: Server, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another fetch is writing into"):
        fetch_nli_data(tmp_path, **SMALL)
    os.close(other)
    fetch_nli_data(tmp_path, **SMALL)


def test_a_damaged_origin_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text("{")
    with pytest.raises(UserError, match=r"origin\.json is damaged"):
        fetch_nli_data(tmp_path, **SMALL)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A tidy user's folder: MultiNLI and HANS in folders of their own."""
    folder = tmp_path / "copies"
    for name, content in (CONTENTS | {HANS_FILE: HANS}).items():
        path = folder / ("hans" if name == HANS_FILE else "multinli") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_copies_end_in_the_same_place_and_form(
    server: Server, copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "OFFICIAL_ROWS", {TRAIN_FILE: 601, MATCHED_FILE: 6, MISMATCHED_FILE: 9})
    say = Lines()
    origin = fetch_nli_data(tmp_path / "data", copies=copies, say=say, **SMALL)
    assert_complete(tmp_path / "data")
    assert not server.log
    # Too few rows; the right number of rows, but no checksum to tell; the published checksum.
    official = {name: entry["is_official"] for name, entry in origin["files"].items()}
    assert official == {TRAIN_FILE: False, MATCHED_FILE: None, MISMATCHED_FILE: None, HANS_FILE: True}
    assert origin["files"][MATCHED_FILE]["copied_from"] == str(copies / "multinli" / MATCHED_FILE)
    assert f"{TRAIN_FILE}: not the complete official file: 600 rows, that one has 601" in say

    assert fetch_nli_data(tmp_path / "data", copies=copies, **SMALL) == origin
    parquet = (tmp_path / "data" / "parquet" / "train.parquet").read_bytes()
    fetch_nli_data(tmp_path / "downloaded", **SMALL)
    assert (tmp_path / "downloaded" / "parquet" / "train.parquet").read_bytes() == parquet


def test_a_download_takes_the_place_of_copies_that_nothing_vouches_for(server: Server, copies: Path, tmp_path: Path) -> None:
    fetch_nli_data(tmp_path / "data", copies=copies, **SMALL)
    origin = fetch_nli_data(tmp_path / "data", **SMALL)
    assert all(entry["is_official"] for entry in origin["files"].values())
    assert [name for name, _ in server.log] == ["multinli_1.0.zip"]
    # The same content as copies again: still known to be the official one.
    assert fetch_nli_data(tmp_path / "data", copies=copies, **SMALL) == origin


def test_the_archive_is_a_copy_too(server: Server, copies: Path, tmp_path: Path) -> None:
    archive = copies / "multinli_1.0.zip"
    archive.write_bytes(ARCHIVE)
    for name in CONTENTS:
        (copies / "multinli" / name).unlink()
    for _ in range(2):
        origin = fetch_nli_data(tmp_path / "data", copies=copies, **SMALL)
        assert origin["files"][TRAIN_FILE]["is_official"] is True
        assert origin["files"][TRAIN_FILE]["copied_from"] == str(archive)
    assert_complete(tmp_path / "data")
    assert archive.exists()
    archive.write_bytes(ARCHIVE[:-1])
    with pytest.raises(UserError, match=r"multinli_1\.0\.zip has sha256 .* cut off or another"):
        fetch_nli_data(tmp_path / "other", copies=copies, **SMALL)


def test_a_folder_may_adopt_what_lies_in_it(server: Server, copies: Path) -> None:
    for name in FILES:
        os.replace(copies / ("hans" if name == HANS_FILE else "multinli") / name, copies / name)
    for folder in ("hans", "multinli"):
        (copies / folder).rmdir()
    fetch_nli_data(copies, copies=copies, **SMALL)
    assert_complete(copies)


def test_missing_and_other_copies(server: Server, copies: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--from .*none is not a folder; give the one that holds multinli_1\.0_train\.jsonl"):
        fetch_nli_data(tmp_path / "a", copies=tmp_path / "none", **SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--from .*empty has no multinli_1\.0_train\.jsonl"):
        fetch_nli_data(tmp_path / "a", copies=tmp_path / "empty", **SMALL)
    assert not (tmp_path / "a").exists(), "an empty folder would be taken for data"
    (copies / "hans" / HANS_FILE).write_bytes(HANS + HANS.split(b"\n")[1] + b"\n")
    origin = fetch_nli_data(tmp_path / "b", copies=copies, **(SMALL | {"hans_rows": 4}))
    assert origin["files"][HANS_FILE]["is_official"] is False
    (copies / "multinli" / MATCHED_FILE).unlink()
    with pytest.raises(UserError, match=rf"has no {MATCHED_FILE}, and no multinli_1\.0\.zip; add it"):
        fetch_nli_data(tmp_path / "c", copies=copies, **SMALL)


def test_a_way_out_for_other_copies_is_there_to_be_taken(copies: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"take it as it is in a study's own file: nli_sources_config\(…, hans_rows=3\)"):
        fetch_nli_data(tmp_path / "a", copies=copies, dev_rows_per_label=1)
    assert nli_sources_config(str(tmp_path / "a"), hans_rows=3, dev_rows_per_label=1).is_known


NEG_NLI = ("index\tText\tHypothesis\tgold_label\r\n" + "".join(f"{i}\tA.\tB.\tneutral\r\n" for i in range(3))).encode()
MED_HEADER = "index\tgenre\tsentence1\tsentence2\tgold_label\n"
MED = (MED_HEADER + "1\tcrowd:upward_monotone\tA b.\tA.\tentailment\n").encode()
CHALLENGES = {"neg_nli": ("MNLI.txt", NEG_NLI), "med": ("MED.tsv", MED)}


@pytest.fixture
def publishers(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server has two challenge sets as well, as the publishers do, in a repository's folder."""
    for name, (path, content) in CHALLENGES.items():
        server.contents[f"owner/{name}/main/data/{path}"] = content
        url = server.url(f"owner/{name}/main/data/{path}")
        file = PublishedFile(path, url, hashlib.sha256(content).hexdigest(), len(content))
        monkeypatch.setitem(CHALLENGE_SETS, name, replace(CHALLENGE_SETS[name], files=(file,)))
    monkeypatch.setattr(downloads, "RAW", server.url("")[:-1])
    return server


def test_challenge_sets_are_downloaded_to_their_places(publishers: Server, tmp_path: Path) -> None:
    publishers.breaks = [len(ARCHIVE), len(HANS), 20]  # neg_nli breaks off and goes on
    origin = fetch_nli_data(tmp_path, challenges=["hans", "neg_nli", "med"], **SMALL)
    for name, (path, content) in CHALLENGES.items():
        place = f"challenge/{name}/{path}"
        assert (tmp_path / place).read_bytes() == content
        assert origin["files"][place]["is_official"] is True
        assert origin["files"][place]["url"] == publishers.url(f"owner/{name}/main/data/{path}")
        assert sorted(path.name for path in (tmp_path / place).parent.iterdir()) == [path]
    assert publishers.log[2:4] == [("owner/neg_nli/main/data/MNLI.txt", ""), ("owner/neg_nli/main/data/MNLI.txt", "bytes=20-")]
    assert origin["parquet"]["metrics"]["neg_nli/num_examples"] == 3
    assert read_examples(tmp_path / "parquet/med.parquet").num_rows == 1


def test_a_challenge_set_is_added_to_what_is_there_and_stays(publishers: Server, tmp_path: Path) -> None:
    fetch_nli_data(tmp_path, **SMALL)
    publishers.log.clear()
    assert "med/num_examples" in fetch_nli_data(tmp_path, challenges=["med"], **SMALL)["parquet"]["metrics"]
    assert [name for name, _ in publishers.log] == ["owner/med/main/data/MED.tsv"]
    publishers.log.clear()
    origin = fetch_nli_data(tmp_path, challenges=["neg_nli", "med"], **SMALL)
    assert [name for name, _ in publishers.log] == ["owner/neg_nli/main/data/MNLI.txt"]
    assert {"med/num_examples", "neg_nli/num_examples"} <= set(origin["parquet"]["metrics"])
    assert fetch_nli_data(tmp_path, **SMALL)["parquet"] == origin["parquet"]


def test_a_challenge_set_that_is_another_is_not_kept(publishers: Server, tmp_path: Path) -> None:
    publishers.contents["owner/med/main/data/MED.tsv"] = MED.replace(b"A b.", b"A c.")
    with pytest.raises(UserError, match=r"MED.tsv sent content with sha256 .*nothing of it is kept"):
        fetch_nli_data(tmp_path, challenges=["med"], **SMALL)
    assert not list((tmp_path / "challenge/med").iterdir())
    publishers.contents["owner/med/main/data/MED.tsv"] = MED + MED
    with pytest.raises(UserError, match=rf"MED.tsv offers {2 * len(MED):,} bytes, the published file has {len(MED):,}.*--from"):
        fetch_nli_data(tmp_path, challenges=["med"], **SMALL)


@pytest.mark.parametrize("layout", ["challenge/med/MED.tsv", "med/MED.tsv", "MED.tsv", "data/MED.tsv"])
def test_a_challenge_set_is_copied_from_wherever_it_may_lie(publishers: Server, tmp_path: Path, layout: str) -> None:
    fetch_nli_data(tmp_path / "data", **SMALL)
    (tmp_path / "copies" / layout).parent.mkdir(parents=True)
    (tmp_path / "copies" / layout).write_bytes(MED)
    origin = fetch_nli_data(tmp_path / "data", copies=tmp_path / "copies", challenges=["med"], **SMALL)
    entry = origin["files"]["challenge/med/MED.tsv"]
    assert entry["copied_from"] == str(tmp_path / "copies" / layout) and entry["is_official"] is True
    (tmp_path / "copies" / layout).write_bytes(MED + MED.splitlines()[1].replace(b"1", b"2", 1) + b"\n")
    origin = fetch_nli_data(tmp_path / "data", copies=tmp_path / "copies", challenges=["med"], **SMALL)
    assert origin["files"]["challenge/med/MED.tsv"]["is_official"] is False
    assert origin["parquet"]["metrics"]["med/num_examples"] == 2


def test_a_challenge_set_that_the_copies_lack_is_named(publishers: Server, tmp_path: Path) -> None:
    fetch_nli_data(tmp_path / "data", **SMALL)
    (tmp_path / "copies").mkdir()
    with pytest.raises(UserError, match=r"--from .*copies has no challenge/med/MED.tsv; add it, or download without --from"):
        fetch_nli_data(tmp_path / "data", copies=tmp_path / "copies", challenges=["med"], **SMALL)


def test_an_unknown_challenge_set_is_refused_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"challenges=sick: there is no such .*valid: hans, mnli_hard, med, scone, neg_nli"):
        fetch_nli_data(tmp_path / "data", challenges=["sick"], **SMALL)
    assert not server.log and not (tmp_path / "data").exists()
