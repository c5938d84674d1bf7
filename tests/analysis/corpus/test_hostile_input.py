"""Hostile files of labelled pairs: one line with the file's name, no traceback and no growth of memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.corpus.input import clean_batch, open_texts
from pipelines.errors import UserError
from pipelines.tables import readers

HEADER = b"premise,hypothesis,label\n"
ROW = b'{"premise": "A man", "hypothesis": "A man", "label": "neutral"}\n'
DEEP = b'{"premise": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
HUGE = b"a" * (200 << 10)

CASES: dict[str, tuple[bytes, str]] = {
    "deep.jsonl": (ROW + DEEP, "line 2"),
    "deep_first.jsonl": (DEEP, "line 1"),
    "huge_line.jsonl": (ROW + b'{"premise": "' + HUGE, "line 2"),
    "no_lines.jsonl": (HUGE, "line 1"),
    "nul.jsonl": (ROW + b"\0\0\0\n", "line 2"),
    "latin1.jsonl": (ROW + b'{"premise": "\xe9", "hypothesis": "a", "label": "b"}\n', "line 2"),
    "half_a_character.jsonl": (ROW + b'{"premise": "\\ud800", "hypothesis": "a", "label": "b"}\n', "line 2"),
    "objects_for_texts.jsonl": (ROW + b'{"premise": {"a": 1}, "hypothesis": "a", "label": "b"}\n', "line 2"),
    "an_array.jsonl": (ROW + b"[1, 2]\n", "line 2"),
    "infinite_label.jsonl": (ROW + b'{"premise": "a", "hypothesis": "a", "label": 1e999}\n', "line 2"),
    "a_pickle.jsonl": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "line 1"),
    "huge_field.csv": (HEADER + b'"' + HUGE + b'",a,b\n', "huge_field.csv"),
    "open_quote.csv": (HEADER + b'"a,a,b\n' + b"a,a,b\n" * 40_000, "open_quote.csv"),
    "latin1.csv": (HEADER + b"\xe9,a,b\n", "latin1.csv"),
    "latin1_header.csv": (b"pr\xe9mise,hypothesis,label\na,a,b\n", "latin1_header.csv"),
    "utf16.csv": ("premise,hypothesis,label\na,a,b\n".encode("utf-16"), "utf16.csv"),
    "zip.csv": (b"PK\x03\x04" + bytes(200), "zip.csv"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As with 64 MB, whose files would take long to write.
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 64 << 10)
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 16 << 10)
    content, words = CASES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        pairs = open_texts(tmp_path / name)
        for raw in pairs.raw_batches():
            clean_batch(raw, pairs)
    message = str(raised.value)
    assert name in message and words in message and len(message) < 1_000


def test_a_row_of_ten_thousand_cells_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "many_cells.csv").write_bytes(HEADER + b"a,a,b\n" + b"," * 10_000 + b"\n")
    pairs = open_texts(tmp_path / "many_cells.csv")
    assert [(raw.content.num_rows, raw.malformed) for raw in pairs.raw_batches()] == [(1, (2,))]


def dataset(folder: Path, **files: object) -> None:
    for name, value in files.items():
        (folder / ("a.arrow" if name == "arrow" else f"{name}.json")).write_text(
            value if isinstance(value, str) else json.dumps(value)
        )


FOLDERS: dict[str, Callable[[Path], None]] = {
    "absolute": lambda folder: dataset(folder, state={"_data_files": [{"filename": "/etc/passwd"}]}),
    "above": lambda folder: dataset(folder, state={"_data_files": [{"filename": "../data.arrow"}]}),
    "deep": lambda folder: dataset(folder, state="[" * 200_000),
    "deep_splits": lambda folder: dataset(folder, dataset_dict="[" * 200_000),
    "no_arrow": lambda folder: dataset(folder, state={"_data_files": [{"filename": "a.arrow"}]}, arrow="\xff" * 64),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_dataset_folder_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    FOLDERS[name](tmp_path / name)
    with pytest.raises(UserError, match=name):
        list(open_texts(tmp_path / name).raw_batches())
