"""Which files of a folder are one table: the layouts of data sets, their splits, their shards. Names only, nothing is read.

    files_of(["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "my_folder", "train")

A path may end in a split, or in several: `my_folder:train`, `my_folder:train+validation`. Splits are never put together
otherwise. These layouts are known, with any format in place of Parquet:

| files | split |
|---|---|
| `train-00000-of-00002.parquet`, also with a hash behind, also in `data/` | by the shards' name |
| `train.parquet`, `pairs_train.parquet`, `dev_matched.parquet` | from the word train, validation, dev, test on |
| `train/0000.parquet`, `train/any.parquet` | the folder's name |
| `CONFIG/` of one of these, as on the hub's converted branch | a folder to be named where there are several |
| `dataset_dict.json` beside `train/`, as `save_to_disk` writes it | the folder's name |
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from pipelines.errors import UserError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of compressed files of text."""
IN_FOLDERS = (".parquet", ".arrow", ".feather", ".csv", ".tsv", ".jsonl", ".ndjson")
"""What is looked for in a folder; .json only where there is none of these, since settings are written as .json, too."""
NO_TABLES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Files of `datasets` that describe others."""
KINDS_OF_SPLIT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words that name a split, in any case, and what it is for."""

_WORD = "|".join(sorted(KINDS_OF_SPLIT, key=len, reverse=True))
_SPLIT = re.compile(rf"(?:^|.*?[-_. ])((?P<word>{_WORD})(?:[-_. ].*)?)", re.IGNORECASE)
_SHARD = re.compile(r"(?P<name>.+)-(?P<index>\d+)-of-(?P<total>\d+)(?P<hash>(?:-[0-9a-f]+)?)")
_INDEX = re.compile(r"-\d+-of-")
_NUMBER = re.compile(r"(?:[-_. ](?:part|shard|chunk|file))?[-_. ]?\d+$", re.IGNORECASE)
_CACHED = re.compile(r"(?:cache|tmp)-?[0-9a-z_]+\.arrow")
"""What `datasets` keeps of its own work beside a data set."""


def format_of(name: str) -> str:
    """What a file's name says of its format, such as ``.parquet``, or ``.csv.gz`` of a compressed text."""
    name = name.rpartition("/")[2].lower()
    inner, dot, last = name.rpartition(".")
    if f".{last}" in COMPRESSED and (text := f".{inner.rpartition('.')[2]}") in TEXT_SUFFIXES and "." in inner:
        return f"{text}.{last}"
    return f".{last}" if dot and inner else ""


def uncompressed(name: str) -> str:
    """A file's name without the ending of its compression."""
    return name[: -len(name.rpartition(".")[2]) - 1] if name.lower().endswith(COMPRESSED) else name


def split_path(path: str) -> tuple[str, str]:
    """A path without its split, and the split: `my_folder:train` is `my_folder` and `train`. Empty for a path without one."""
    inner, _, split = path.rpartition(":")
    return (inner.rstrip("/"), split) if inner and re.fullmatch(r"[\w.-]+(?:\+[\w.-]+)*", split) else (path, "")


def split_of(name: str) -> str:
    """The split that a file's name says it is of; empty where it says none."""
    stem = name[: len(name) - len(format_of(name))]
    if shard := _SHARD.fullmatch(stem):
        stem = shard["name"]
    else:
        stem = _NUMBER.sub("", stem)
        if not _SPLIT.fullmatch(stem):
            return ""
    named = _SPLIT.fullmatch(stem)
    return named[1] if named else stem


def files_of(names: Collection[str], folder: str, split: str = "") -> list[str]:
    """The files of one table, in order, among the `names` of all files below the folder; of `split`, if it is given.

    Of a folder that `save_to_disk` wrote these are all its files, `state.json` among them. Raises :class:`UserError` for no
    table, several splits or configurations of which none is named, a split that is not there, several formats, and a shard
    that is missing.
    """
    if "dataset_dict.json" in names:
        saved = sorted({name.partition("/")[0] for name in names if re.fullmatch(r"[^/]+/state\.json", name)})
        by_split = {part: [name for name in names if name.startswith(f"{part}/")] for part in saved}
        return sorted(_chosen(by_split, folder, split))
    if "state.json" in names:
        if split:
            raise UserError(f"{folder} is one split of a data set; leave :{split} out")
        return sorted(name for name in names if "/" not in name)
    tables = _tables_of(names)
    if not tables:
        raise UserError(f"{folder} has no files of a table ({', '.join(IN_FOLDERS)}) and is no dataset folder")
    chosen = sorted(_chosen(_by_split(tables, folder), folder, split))
    _check_formats(chosen, folder, folder)
    _check_shards(chosen, folder)
    return chosen


def is_table(name: str, suffixes: Collection[str] = IN_FOLDERS) -> bool:
    """Whether a file that is found in a folder is one of a table; hidden ones are not."""
    base = PurePosixPath(name).name
    is_hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return _suffix(name) in suffixes and not is_hidden and base not in NO_TABLES and not _CACHED.fullmatch(base)


def _tables_of(names: Collection[str]) -> list[str]:
    return [name for name in names if is_table(name)] or [name for name in names if is_table(name, (".json",))]


def files_like(names: Collection[str], pattern: str, folder: str, split: str = "") -> list[str]:
    """Those of the `names` in a folder that fit a pattern, in order.

    Raises :class:`UserError` as :func:`files_of` does, and where none fits. Parts of one kind of split are one table, since the
    pattern asks for them (`dev_*.parquet`); train, validation and test are not. A shard is missing only if the pattern asks for
    it.
    """
    where = f"{folder}/{pattern}"
    fitting = sorted(fnmatch.filter(names, pattern))
    if not fitting or any(_suffix(name) not in (*IN_FOLDERS, *TEXT_SUFFIXES) for name in fitting):
        raise UserError(
            f"{where} is a pattern of {len(fitting):,} files; give one of files of a table ({', '.join(IN_FOLDERS)})"
        )
    by_split = _grouped(fitting)
    kinds = {_kind(name) for name in by_split if name}
    chosen = sorted(_chosen(by_split, where, split)) if split or len(kinds) > 1 else fitting
    _check_formats(chosen, folder, where)
    _check_shards(chosen, where, pattern)
    return chosen


def _suffix(name: str) -> str:
    """The format without the compression."""
    return "." + format_of(name).split(".")[1] if format_of(name) else ""


def _kind(split: str) -> str:
    """What a split is for; its own name, if that is not known."""
    named = _SPLIT.fullmatch(split)
    return KINDS_OF_SPLIT[named["word"].lower()] if named else split


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(PurePosixPath(name).name), []).append(name)
    return by_split


def _by_split(names: Sequence[str], folder: str, above: str = "") -> dict[str, list[str]]:
    """The names by their splits, at the first level of folders that has any."""
    here = [name for name in names if "/" not in name.removeprefix(above)]
    if here:
        return _grouped(here)
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.removeprefix(above).partition("/")[0], []).append(name)
    if "data" in folders:
        return _by_split(folders["data"], folder, f"{above}data/")
    if any(_is_split(inner, [name.removeprefix(f"{above}{inner}/") for name in below]) for inner, below in folders.items()):
        return folders
    if len(folders) == 1:
        (inner,) = folders
        return _by_split(folders[inner], folder, f"{above}{inner}/")
    listed = _listed([f"{folder}/{above}{inner}" for inner in sorted(folders)])
    raise UserError(f"{folder} has several folders with tables; give one of them: {listed}")


def _is_split(folder: str, below: Sequence[str]) -> bool:
    """Whether a folder is one of a split, by its name or, as on the hub's converted branch, by its files 0000, 0001, …"""
    is_numbered = all(re.fullmatch(r"\d+", name[: len(name) - len(format_of(name))]) for name in below)
    return is_numbered or (_SPLIT.match(folder) is not None and _SPLIT.match(folder)[1] == folder)  # type: ignore[index]


def _chosen(by_split: Mapping[str, list[str]], where: str, split: str) -> list[str]:
    """The files of the splits that are asked for, or of the only one there is."""
    named = sorted(filter(None, by_split))
    asked = split.split("+") if split else []
    if split and not named:
        raise UserError(f"{where} has no splits; leave :{split} out")
    if absent := [name for name in asked if name not in named]:
        raise UserError(f"{where} has no split {absent[0]!r}; it has {_listed(named)}: give one of them, or several as a+b")
    if not asked and len(by_split) > 1:
        others = by_split.get("", [])
        example = next((name for name in named if _kind(name) == "train"), named[0])
        also = f", and files of none ({_listed([PurePosixPath(name).name for name in others], 3)})" if others else ""
        raise UserError(f"{where} has several splits ({', '.join(named)}{also}); give one of them, as in {where}:{example}")
    return [name for each in asked or by_split for name in by_split[each]]


def _check_formats(names: Sequence[str], folder: str, where: str) -> None:
    """Raise :class:`UserError` for files of several formats, which may be the same rows twice."""
    counts = Counter(map(format_of, names))
    if len(counts) > 1:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.items())
        raise UserError(f"{where} has files of several formats ({listed}); give those of one, as in {folder}/*{min(counts)}")


def _check_shards(names: Sequence[str], where: str, pattern: str = "*") -> None:
    """Raise :class:`UserError` for a shard that is missing though it fits the pattern, and for shards that are there twice."""
    shards: dict[str, dict[str, dict[int, str]]] = {}
    for name in names:
        shard = _SHARD.fullmatch(name[: len(name) - len(format_of(name))])
        if shard is None:
            continue
        there = shards.setdefault(shard["name"], {}).setdefault(shard["total"], {})
        # Each shard can have a hash of its own, so that two with one number are of two writings.
        if (twin := there.setdefault(int(shard["index"]), name)) != name or len(shards[shard["name"]]) > 1:
            other = twin if twin != name else next(iter(next(iter(shards[shard["name"]].values())).values()))
            raise UserError(f"{where} has shards of two writings ({other} and {name}); remove those that are out of date")
    for by_total in shards.values():
        for total, there in by_total.items():
            first = 1 if int(total) in there and 0 not in there else 0
            for index in range(first, first + int(total)):
                if index in there:
                    continue
                name = next(iter(there.values()))
                expected = _INDEX.sub(f"-{index:05d}-of-", name)
                if fnmatch.fnmatch(expected, pattern):
                    missing = _INDEX.sub(f"-{index:05d}-of-", f"{PurePosixPath(name).name.partition('-of-')[0]}-of-{total}")
                    raise UserError(f"{where}: the shard {missing} is missing; get the whole split, or name files by a pattern")


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
