"""Weights from the Hugging Face hub, or a mirror of it (`HF_ENDPOINT`), through its local cache.

Only safetensors, JSON and tokenizer files are fetched. The hub's own client does the work: resumable downloads, the cache
(`HF_HOME`), the token (`HF_TOKEN` or `huggingface-cli login`).
"""

import os
import re
from pathlib import Path

from pipelines.errors import UserError

PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt")
# Pages of the hub itself, so that no account has such a name: what begins with one is a folder's path.
NO_ACCOUNTS = ("models", "datasets", "spaces")


def hub_repository(model: str) -> tuple[str, str] | None:
    """(repository, revision) of `org/name` or `org/name@revision`; None for anything else, as for a path that exists.

    Without a revision it is "main", of which the commit is found out.
    """
    matched = re.fullmatch(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", model)
    if not matched or matched[1] in NO_ACCOUNTS or Path(model).exists() or model.endswith(".gguf"):
        return None
    return f"{matched[1]}/{matched[2]}", matched[3] or "main"


def hub_snapshot(model: str, *, download: bool) -> tuple[Path, str] | None:
    """The local folder of a hub repository (as `hub_repository` reads it) and its commit, in hex.

    None for what is no repository, and without `download` if the cache does not have it. With it, what is missing is fetched;
    raises UserError for a repository that is gated, not there, or cannot be reached.
    """
    if (repository := hub_repository(model)) is None:
        return None
    name, revision = repository
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS), local_files_only=not download))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if not download and isinstance(error, LocalEntryNotFoundError):
            return None
        raise UserError(_explain(name, revision, error)) from error
    # Its cache keeps each commit's files in a folder of that name.
    return folder, folder.name


def _explain(name: str, revision: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    match error:
        case GatedRepoError():
            reason = "is gated, and this token may not read it" if os.environ.get("HF_TOKEN") else "is gated"
        case RevisionNotFoundError():
            reason = f"has no revision {revision!r}"
        case RepositoryNotFoundError():
            reason = "is not there, or not for this token"
        case _:
            reason = f"cannot be fetched ({' '.join(str(error).split())[:200]})"
    return (
        f"{name} {reason} at {endpoint}: accept its licence at https://huggingface.co/{name} if it asks for that, set HF_TOKEN "
        "to a token that may read it, or HF_ENDPOINT to a mirror; or give files that you have: in a study, -p model=FOLDER"
    )
