"""Files of a data set on the Hugging Face hub, or a mirror of it (`HF_ENDPOINT`), through its client's local cache.

hf://datasets/org/name/data/train-*.parquet
hf://datasets/org/name@revision/train.jsonl
"""

import os
import re
from pathlib import Path

from pipelines.errors import UserError

PREFIX = "hf://datasets/"


def is_on_hub(path: str) -> bool:
    return path.startswith(PREFIX)


def hub_path(path: str, *, download: bool) -> Path | None:
    """The local path of a file, folder or pattern of files on the hub; None without `download` where the cache lacks it.

    Raises :class:`UserError` for an address that names no data set, and for one that is not there or cannot be reached.
    """
    matched = re.fullmatch(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?", path)
    if not matched:
        raise UserError(f"{path} names no data set; write {PREFIX}ORG/NAME/FILE, or {PREFIX}ORG/NAME@REVISION/FILE")
    name, revision, inner = matched[1], matched[2] or "main", matched[3] or ""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [inner, f"{inner}/*"] if inner else ["*.parquet", "*.json"]
    try:
        folder = Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=patterns, local_files_only=not download
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if not download and isinstance(error, LocalEntryNotFoundError):
            return None
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        raise UserError(
            f"{path} cannot be fetched from {endpoint} ({' '.join(str(error).split())[:200]}); see that it is there and that "
            "HF_TOKEN may read it, set HF_ENDPOINT to a mirror, or give files that you have"
        ) from error
    return folder / inner if download or any(folder.glob(inner or "*")) else None
