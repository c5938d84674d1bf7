"""Folders brought to a hub when asked, through its own client. The token is the environment's, never kept and never shown."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pipelines.errors import UserError
from sweep.publish.study import Repository

TOKEN = "HF_TOKEN"


def check_upload(name: str) -> None:
    """Raise UserError for what is no `ORG/NAME`, and without a token in the environment; asks nothing of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(f"--push {name}: give ORG/NAME, an account and the beginning of the repositories' names")
    if not os.environ.get(TOKEN):
        raise UserError(f"--push {name} needs a token that may write there: set {TOKEN}; it is neither kept nor shown")


def upload(repositories: Iterable[Repository], name: str, *, public: bool = False) -> list[str]:
    """Bring each folder to the repository `<name>-<its name>`, made if it is not there; returns their addresses.

    Private unless `public`; a repository that is there stays what it is. Raises UserError where the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_upload(name)
    token = os.environ[TOKEN]
    api = HfApi(token=token)
    addresses = []
    for repository in repositories:
        target = f"{name}-{repository.name}"
        try:
            address = api.create_repo(target, repo_type=repository.kind, private=not public, exist_ok=True)
            api.upload_folder(
                repo_id=target,
                repo_type=repository.kind,
                folder_path=repository.folder,
                commit_message=f"{repository.name}, as blindsweep publishes it",
            )
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).replace(token, "…").split())[:300]
            raise UserError(
                f"{target} could not be brought to the hub ({reason}); what is written stays, see whether {TOKEN} may write "
                f"there, and HF_ENDPOINT"
            ) from None
        addresses.append(str(address))
        print(f"pushed: {address}")
    return addresses
