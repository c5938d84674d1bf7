"""What `ray up` would trip over, or would cost, found out before it starts a machine.

AWS is asked with the credentials of whoever asks, at the addresses that boto3's own settings name. Nothing is changed there but
one object in the store, which is written and removed again.
"""

import contextlib
import io
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.storage import filesystem, is_local, join, read_text, remove, write_text
from sweep.cluster.account import Prices, check_account
from sweep.cluster.findings import Finding, short

TOKEN_FILE = ".ray/auth_token"
PLACEHOLDER = re.compile(r"(ami|sg|subnet|vpc|lt)-0+")


def check_cluster(path: Path, store: str | None, prices: Prices) -> Iterator[Finding]:
    """Look at a cluster's file, at the files that it copies, at the account that it names, and at the store.

    Raises :class:`UserError` if there is no such file, or if it is no YAML mapping.
    """
    config = _read(path)
    yield from _of_file(config, path)
    if config.get("provider", {}).get("type") == "aws":
        yield from check_account(config, prices)
    else:
        kind = config.get("provider", {}).get("type")
        yield Finding("account", "not checked", f"provider {kind!r}: only aws can be asked")
    yield check_store(store)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there; give the cluster's file: blindsweep cluster check cluster.yaml") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}); mend it there") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings; give the cluster's file: blindsweep cluster check cluster.yaml")
    return config


# --- the file, and what it copies -------------------------------------------------------------------


def _of_file(config: dict[str, Any], path: Path) -> Iterator[Finding]:
    if fault := _against_schema(config):
        yield Finding("file", "problem", f"{path}: {fault}")
    else:
        yield Finding("file", "ok", f"{path} is as Ray wants it")

    # The same value stands at several places, and its first one is where it is filled in.
    unfilled = {value: where for where, value in reversed([*_strings(config)]) if PLACEHOLDER.fullmatch(value)}
    if unfilled:
        places = "; ".join(f"{where} is {value}" for value, where in unfilled.items())
        yield Finding("ids", "problem", f"{places}: fill in your account's; the comments there say how")
    else:
        yield Finding("ids", "ok", "all filled in")

    # Ray looks for them from where it is started, and only once the head is launched.
    mounts = {remote: Path(local).expanduser() for remote, local in (config.get("file_mounts") or {}).items()}
    missing = [local for local in mounts.values() if not (path.parent / local).exists()]
    tokens = [local for local in missing if str(local).endswith(TOKEN_FILE)]
    others = [str(local) for local in missing if local not in tokens]
    relative = any(not local.is_absolute() for local in mounts.values())
    if others:
        yield Finding("files", "problem", f"{', '.join(others)} of file_mounts missing here; run this where they are")
    elif relative and path.resolve().parent != Path.cwd():
        where = path.resolve().parent
        yield Finding("files", "problem", f"`ray up` takes the paths of file_mounts from the folder it runs in: cd {where}")
    else:
        yield Finding("files", "ok", f"{len(mounts) - len(tokens)} to copy are here")
    yield _of_token(config, mounts, tokens)


def _against_schema(config: dict[str, Any]) -> str | None:
    """What Ray's own validation has against a configuration."""
    import copy
    import logging

    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it warns of what is meant
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(config)))
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.absolute_path)) or 'the whole'}: {error.message}"
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        return short(error)
    finally:
        logging.disable(before)
    return None


def _of_token(config: Mapping[str, Any], mounts: Mapping[str, Path], missing: Sequence[Path]) -> Finding:
    if missing:
        way_out = "without it the head is launched and its setup fails: ray get-auth-token --generate"
        return Finding("token", "problem", f"{missing[0]} is not there; {way_out}")
    if any(remote.endswith(TOKEN_FILE) for remote in mounts):
        return Finding("token", "ok", "yours, copied to every node")
    is_made = any("get-auth-token --generate" in command for command in config.get("head_setup_commands") or [])
    is_handed_on = any(str(file).endswith(TOKEN_FILE) for file in config.get("cluster_synced_files") or [])
    if is_made and is_handed_on:
        return Finding("token", "ok", "the head makes it and hands it to the workers")
    return Finding(
        "token",
        "problem",
        "no node gets one: have head_setup_commands call `ray get-auth-token --generate` and name "
        f"~/{TOKEN_FILE} in cluster_synced_files",
    )


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string below `value`, with its place in dots."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner, path)


# --- the store --------------------------------------------------------------------------------------


def check_store(store: str | None) -> Finding:
    """Whether a store is one for a cluster, and can be written and read from here."""
    if store is None:
        return Finding("store", "not checked", "which one is not said: --store s3://BUCKET/FOLDER")
    if is_local(store):
        return Finding(
            "store", "problem", f"{store} is of one machine, and a node's disk goes with the node: give s3://BUCKET/FOLDER"
        )
    probe = join(store, f".cluster-check-{uuid.uuid4().hex[:8]}")
    try:
        file_system, folder = filesystem(store)
        bucket = folder.partition("/")[0]
        # Not left to the write, which would make one of that name.
        if not file_system.exists(bucket):
            return Finding(
                "store", "problem", f"{store}: there is no bucket {bucket!r}, or it is not yours: aws s3 mb s3://{bucket}"
            )
        write_text(probe, "written to see whether it can be")
        there = read_text(probe)
        remove(probe)
    except Exception as error:  # each file system has errors of its own
        return Finding("store", "problem", f"{store} cannot be written: {short(error)}")
    if there is None:
        return Finding("store", "problem", f"{store}: what is written there cannot be read")
    return Finding("store", "ok", f"{store} can be written and read, by you; the nodes have their profiles' rights")
