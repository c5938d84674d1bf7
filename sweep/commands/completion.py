"""What a shell completes beside commands and options: built-in experiments, the studies and task models of a local store.

An empty list leaves the word to the shell, which completes files.
"""

import os
from pathlib import Path

import typer

DEFAULT_STORE = "./blindsweep-store"
TASK_MODELS = ("starting_point", "task_model")


def experiments(incomplete: str) -> list[str]:
    """Built-in experiments."""
    from sweep.study.loading import builtin_experiments

    return [name for name in builtin_experiments() if name.startswith(incomplete)]


def studies(context: typer.Context, incomplete: str) -> list[str]:
    """Studies of the store, and built-in experiments."""
    there = [path.stem for path in _folder(context, "studies").glob("*.json")]
    return [*(name for name in sorted(there) if name.startswith(incomplete)), *experiments(incomplete)]


def cells(context: typer.Context, incomplete: str) -> list[str]:
    """Slugs of the task models that are built in the store."""
    there = (path.parent.name for stage in TASK_MODELS for path in _folder(context, stage).glob("*/record.json"))
    return sorted({slug for name in there if (slug := name.rpartition("-")[0]).startswith(incomplete)})


def _folder(context: typer.Context, name: str) -> Path:
    """A folder of the store that the words so far name. Of a store in a bucket it is none: nobody waits for an answer there."""
    return Path(context.params.get("store") or os.environ.get("BLINDSWEEP_STORE") or DEFAULT_STORE, name)
