"""`blindsweep gc`: what no study of a store refers to, and what removing it frees."""

import json as js
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from pipelines.errors import UserError
from pipelines.storage import join
from sweep.commands.options import DEFAULT_STORE, Json, StoreUri
from sweep.graph.integrity import SET_ASIDE, what_is_set_aside
from sweep.graph.records import STAGES, Store
from sweep.live.garbage import Folder, Garbage, find_garbage, live_runs, remove_garbage, total


def gc(
    store: StoreUri = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    json: Json = False,
) -> None:
    """Remove the artifacts that no study of the store refers to, and unfinished folders that nobody builds.

    A study refers to what its last run was to build: another `-p` under the same name leaves the earlier artifacts behind. What
    any study of the store refers to is never touched, nor what a run is building, nor `set-aside`. While a run goes on nothing
    is removed. It cannot be undone: look with --dry-run first.

        blindsweep gc --dry-run
        blindsweep gc --store s3://bucket/studies --yes
    """
    where = Store(store)
    found = find_garbage(where)
    if not json:
        print("\n".join(_page(found)))
        num_aside, bytes_aside = what_is_set_aside(where)
        if num_aside:
            print(f"{join(where.uri, SET_ASIDE)} holds {num_aside:,} artifacts, {size(bytes_aside)}, that are not touched")
    if not dry_run and found.loose:
        if not yes:
            if json or not _is_terminal():
                raise UserError("without a terminal nobody can be asked; add --yes to remove it, or --dry-run to only look")
            if not typer.confirm("Remove it for good?"):
                print("nothing is removed")
                raise typer.Exit(1)
        found = remove_garbage(where)
        if not json:
            print(f"removed: {_number(found)}, {size(found.num_bytes)}")
    elif not json and found.loose and live_runs(where):
        print("a run goes on: nothing would be removed before it has ended")
    if json:
        print(js.dumps(_object(where, found, is_removed=not dry_run), indent=1, ensure_ascii=False))


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def size(num_bytes: float) -> str:
    """12 B, 1.2 kB, 3.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _number(found: Garbage) -> str:
    complete = sum(folder.is_complete for folder in found.loose)
    parts = [_plural(complete, "artifact")] if complete else []
    if unfinished := len(found.loose) - complete:
        parts.append(_plural(unfinished, "unfinished folder"))
    return " and ".join(parts) or "nothing"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _page(found: Garbage) -> list[str]:
    kept = _plural(len(found.reachable), "artifact")
    studies = "1 study" if found.num_studies == 1 else f"{found.num_studies} studies"
    lines = []
    if found.loose:
        lines.append(f"nothing refers to {_number(found)}; removing frees {size(found.num_bytes)}:")
        for stage in STAGES:
            of_stage = [folder for folder in found.loose if folder.stage == stage]
            if of_stage:
                complete = sum(folder.is_complete for folder in of_stage)
                unfinished = f", {len(of_stage) - complete} unfinished" if complete < len(of_stage) else ""
                lines.append(f"  {stage:<15} {complete}{unfinished}, {size(total(of_stage))}")
    else:
        lines.append("nothing is to be removed: every artifact is referred to")
    lines.append(f"kept: {kept} that {studies} refer{'s' if found.num_studies == 1 else ''} to, {size(total(found.reachable))}")
    if found.held:
        lines.append(f"kept: {_plural(len(found.held), 'folder')} that a run is building, {size(total(found.held))}")
    return lines


def _object(store: Store, found: Garbage, *, is_removed: bool) -> dict[str, object]:
    def described(folders: Sequence[Folder]) -> list[dict[str, object]]:
        return [
            {"stage": one.stage, "folder": one.name, "bytes": one.num_bytes, "complete": one.is_complete} for one in folders
        ]

    return {
        "store": store.uri,
        "removed": is_removed,
        "bytes": found.num_bytes,
        "unreferenced": described(found.loose),
        "held": described(found.held),
        "kept": {"artifacts": len(found.reachable), "bytes": total(found.reachable), "studies": found.num_studies},
    }
