"""Tables that are not on this machine: on the Hugging Face hub (`hf://datasets/…`) or in an object store (`s3://`, `gs://`).

    local_copy("s3://bucket/pools/mine:train")    # ~/.cache/blindsweep/mine-0a1b2c3d4e5f6a7b

The files of the one table are fetched to a cache, and no others: of a folder those of the split, of a pattern those that fit. A
file goes from there to there, and is never in memory as a whole. What has changed meanwhile is fetched again.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipelines.errors import UserError
from pipelines.storage import cached, exists, fetch, is_local, join, local_path, names_below
from pipelines.tables.hub import hub_path, is_on_hub
from pipelines.tables.splits import files_like, files_of, split_path


def is_remote(path: str) -> bool:
    """Whether a path is an address, on this machine (``file://``) or another."""
    return "://" in path


def local_copy(path: str, *, download: bool = True) -> str | None:
    """The path here that the same table is read from; None without `download` where it is not in the cache.

    A path on this machine is returned as it is. Raises :class:`UserError` for what is not there, cannot be reached, or is not
    one table (:mod:`pipelines.tables.splits`).
    """
    if is_on_hub(path):
        return hub_path(path, download=download)
    if is_local(path):
        return str(local_path(path)) if is_remote(path) else path
    scheme = path.partition("://")[0]
    if scheme in ("hf", "http", "https"):
        raise UserError(f"{path}: tables are read from s3://, gs:// and hf://datasets/, not from there; download it first")
    inner, split = split_path(path)
    if split and exists(path):
        # Names of objects may have any colon.
        inner, split = path, ""
    folder, _, last = inner.rpartition("/")
    if "*" in last:
        names = names_below(folder)
        chosen = files_like([name for name in names or () if "/" not in name], last, folder, split)
        copy = fetch(folder, only=chosen) if download else cached(folder, chosen)
        return copy and join(copy, last) + (f":{split}" if split else "")
    names = names_below(inner)
    if names is None:
        if split:
            raise UserError(f"{inner} is a file, which has no splits; leave :{split} out")
        return fetch(inner) if download else cached(inner)
    chosen = files_of(names, inner, split)
    copy = fetch(inner, only=chosen) if download else cached(inner, chosen)
    return copy and _inside(copy, chosen)


def _inside(copy: str, chosen: list[str]) -> str:
    """The folder of a copy that has the table: of a data set that was saved with several splits, the split's own."""
    states = [name for name in chosen if PurePosixPath(name).name == "state.json"]
    return join(copy, str(PurePosixPath(states[0]).parent)) if len(states) == 1 and "/" in states[0] else copy
