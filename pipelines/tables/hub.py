"""Files of a data set on the Hugging Face hub, or a mirror of it (`HF_ENDPOINT`), through its client's local cache.

hf://datasets/org/name:train
hf://datasets/org/name/data/train-*.parquet
hf://datasets/org/name@revision/train.jsonl
hf://datasets/org/name@refs/convert/parquet/CONFIG:validation
"""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines.errors import UserError
from pipelines.tables.splits import files_like, files_of, split_path

PREFIX = "hf://datasets/"
_ADDRESS = re.compile(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.+?))?/?")


def is_on_hub(path: str) -> bool:
    return path.startswith(PREFIX)


def hub_path(path: str, *, download: bool) -> str | None:
    """The path here of a file, folder or pattern of files on the hub, with its split; None without `download` where the cache
    lacks it.

    Only the files of the one table are fetched. Raises :class:`UserError` for an address that names no data set, for one that
    is not there or cannot be reached, and as :func:`pipelines.tables.splits.files_of` does.
    """
    whole, split = split_path(path)
    matched = _ADDRESS.fullmatch(whole)
    if not matched:
        raise UserError(f"{path} names no data set; write {PREFIX}ORG/NAME/FILE, or {PREFIX}ORG/NAME@REVISION/FILE")
    name, revision, inner = matched[1], (matched[2] or "main").replace("%2F", "/"), matched[3] or ""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    snapshot: dict[str, Any] = {"repo_id": name, "repo_type": "dataset", "revision": revision}
    suffix = f":{split}" if split else ""

    def in_cache() -> str | None:
        try:
            # No file is asked for: whether all of the table are there is seen below.
            folder = Path(snapshot_download(**snapshot, local_files_only=True, allow_patterns=["/"]))
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        is_here = _chosen(_names_below(folder), whole, inner, split, is_whole=False)
        return f"{folder / inner}{suffix}" if is_here else None

    if not download:
        return in_cache()
    try:
        # Listing the tree would try again for half a minute where nothing answers.
        names = [file.rfilename for file in HfApi().dataset_info(name, revision=revision).siblings or ()]
        chosen = _chosen(names, whole, inner, split, is_whole=True)
        folder = Path(snapshot_download(**snapshot, allow_patterns=[glob.escape(name) for name in chosen]))
        return f"{folder / inner}{suffix}"
    except UserError:
        raise
    # The client lets errors of its HTTP library through, which has been another one before.
    except Exception as error:
        is_certain = isinstance(error, HFValidationError) or (isinstance(error, HfHubHTTPError) and _status(error) < 500)
        if not is_certain and (copy := in_cache()):
            return copy
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        raise UserError(
            f"{path} cannot be fetched from {endpoint} ({' '.join(str(error).split())[:200]}); see that it is there and that "
            "HF_TOKEN may read it, set HF_ENDPOINT to a mirror, or give files that you have"
        ) from error


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 500))


def _names_below(folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def _chosen(names: Sequence[str], address: str, inner: str, split: str, *, is_whole: bool) -> list[str]:
    """The files of the table. Where not `is_whole`, files may be missing, and what cannot be chosen is not there."""
    try:
        if inner in names:
            if split:
                raise UserError(f"{address} is a file, which has no splits; leave :{split} out")
            return [inner]
        prefix = f"{inner}/" if inner else ""
        if "*" in inner:
            parent = str(PurePosixPath(inner).parent)
            prefix = "" if parent == "." else f"{parent}/"
            beside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            chosen = files_like(
                [name for name in beside if "/" not in name], PurePosixPath(inner).name, address.rpartition("/")[0], split
            )
        else:
            below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            if not below:
                raise UserError(f"{address} does not exist; the data set has {', '.join(sorted(names)[:8])}")
            chosen = files_of(below, address, split)
        return [f"{prefix}{name}" for name in chosen]
    except UserError:
        if is_whole:
            raise
        return []
