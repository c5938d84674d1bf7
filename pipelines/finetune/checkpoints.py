"""A finetuning's own files beside its model: logged steps, checkpoints, kept states, and a result for the rest of a group.

A checkpoint is whole by parameter, not by worker: each worker writes the pieces of the optimizer's state that it holds, under
the parameters' names, and any number of workers reads the pieces that it needs (docs/checkpoints.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.errors import UserError
from pipelines.finetune.job import Member
from pipelines.identity import RESULT_FILE, sha256_of
from pipelines.storage import filesystem, is_local, join, local_path, read_text, remove, working_folder, write_text
from pipelines.workers.watchdog import patiently

if TYPE_CHECKING:
    import torch

METRICS_FILE = "metrics.jsonl"
"""A finetuning's logged steps, one JSON object a line."""
CHECKPOINTS = ".checkpoints"
STATES = "states"
DEEPSPEED, TOGETHER = "deepspeed", "together"
"""The engines that step a job: DeepSpeed alone, or `together.py` several at once."""
MASTER, FIRST, SECOND = KINDS = ("master", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each trained number, in fp32: the weight itself and its two moments."""
FILE_BYTES = 2**31
"""About how much one file of a checkpoint holds: so much memory its worker needs to write it."""
FORMAT = 1
OLD_LATEST = "latest.json"
"""What an earlier version, which pickled, had in place of lists of files."""

logger = logging.getLogger(__name__)


class Piece(NamedTuple):
    """Numbers `start` to `start + size` of the parameter `name`, flat, which lie at `place` of a longer tensor."""

    name: str
    start: int
    size: int
    place: int


@dataclass(frozen=True)
class Part:
    """A run of the optimizer's state: by `KINDS` flat fp32 tensors of one length, and the parameters' pieces in each."""

    tensors: Mapping[str, torch.Tensor]
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Progress:
    """How far a job is on one worker. `loss` is that worker's sum since `logged_step`, the last step in the `log`.

    `num_updates` is the optimizer's own count, which corrects the moments' bias.
    """

    next_step: int
    log: list[dict[str, float]]
    logged_step: int
    loss: float
    num_updates: int


class _DamagedError(Exception):
    """A checkpoint that is not what was written; the message says which file, and how."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a job's output, as one engine's worker number `rank` of `num_workers` writes and reads them.

    The two newest are kept: should the last one be damaged, the one before it is still there. `device` is what the workers
    talk over, if there are several.
    """

    output: str
    engine: str
    rank: int = 0
    num_workers: int = 1
    device: torch.device | None = None

    @property
    def _where(self) -> str:
        return join(self.output, CHECKPOINTS)

    @patiently()
    def save(self, progress: Progress, parts: Sequence[Part]) -> None:
        """Keep what a later call goes on from: `parts`, which no other worker keeps, and how far the job is. Collective.

        Raises UserError if the workers write to different places.
        """
        step = progress.next_step
        if self.rank == 0:
            self._make_room(step)
        with working_folder(_folder(self._where, step)) as folder:
            own = {"loss": progress.loss, "files": dict(_write(parts, folder, f"worker{self.rank}"))}
            (folder / f"worker{self.rank}.json").write_text(json.dumps(own))
        if self.num_workers > 1:
            import torch

            torch.distributed.barrier()
        if self.rank == 0:
            written = [self._written_by(worker, step) for worker in range(self.num_workers)]
            content = {
                "format": FORMAT,
                "engine": self.engine,
                "next_step": step,
                "num_updates": progress.num_updates,
                "logged_step": progress.logged_step,
                "losses": [worker["loss"] for worker in written],
                "log": progress.log,
                "files": {name: file for worker in written for name, file in worker["files"].items()},
            }
            # Last of all: what it lists is there.
            write_text(_list_of_files(self._where, step), _sealed(content))

    def _make_room(self, step: int) -> None:
        """Leave the newest checkpoint from before `step`; what was never complete goes, too."""
        names = _names(self._where)
        kept = {step, *[earlier for earlier in _steps(names) if earlier < step][:1]}
        for name in names:
            match = re.fullmatch(r"step(\d+)(\.json)?", name)
            if match and int(match[1]) not in kept:
                _remove(self._where, int(match[1]))
        # Its files are about to be written over.
        remove(_list_of_files(self._where, step))

    def _written_by(self, worker: int, step: int) -> dict[str, Any]:
        text = read_text(join(_folder(self._where, step), f"worker{worker}.json"))
        if text is None:
            raise UserError(
                f"{_folder(self._where, step)} lacks what worker {worker} of {self.num_workers} has written: its node has "
                "another disk there; give a store that all nodes share"
            )
        return dict(json.loads(text))

    @patiently()
    def load(self, parts: Sequence[Part]) -> Progress | None:
        """Fill `parts` from the newest checkpoint that is whole; None if there is none, and the job begins. Collective.

        One that is damaged, or pickled by an earlier version, is removed, with a line in the log.
        """
        if self.rank == 0:
            _remove_pickled(self._where)
        while step := self._least(next(iter(_steps(_names(self._where))), 0) if self.rank == 0 else None):
            damage = ""
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as scratch:
                try:
                    content = _read_list(self._where, step)
                    files = _intact_files(_folder(self._where, step), content, parts, Path(scratch))
                except _DamagedError as error:
                    damage = str(error)
                if self._least(int(not damage)):
                    _fill(parts, content["files"], files)
                    return Progress(
                        next_step=step,
                        log=content["log"],
                        logged_step=content["logged_step"],
                        loss=sum(content["losses"][self.rank :: self.num_workers]),
                        num_updates=content["num_updates"],
                    )
            if damage:
                logger.warning("the checkpoint at step %d is removed, and what was before it goes on: %s", step, damage)
            if self.rank == 0:
                _remove(self._where, step)
        return None

    def _least(self, number: int | None) -> int:
        """The least of the workers' numbers; None is no opinion. Collective."""
        if self.num_workers == 1:
            assert number is not None
            return number
        import torch

        least = torch.tensor([2**62 if number is None else number], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        return int(least.item())


def checkpointing_engine(output: str) -> str | None:
    """The engine that wrote the last checkpoint in `output`; None if there is none, or it is damaged."""
    where = join(output, CHECKPOINTS)
    for step in _steps(_names(where))[:1]:
        try:
            return str(_read_list(where, step)["engine"])
        except _DamagedError:
            return None
    return None


def last_commit(output: str) -> int | None:
    """The step that a finetuning would go on with, None before its first checkpoint."""
    return next(iter(_steps(_names(join(output, CHECKPOINTS)))), None)


# --- a checkpoint's files ---


def _folder(where: str, step: int) -> str:
    return join(where, f"step{step}")


def _list_of_files(where: str, step: int) -> str:
    return join(where, f"step{step}.json")


def _names(where: str) -> list[str]:
    """What lies in a folder, ascending; nothing if there is no such folder."""
    file_system, path = filesystem(where)
    try:
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in file_system.ls(path, detail=False))
    except FileNotFoundError:
        return []


def _steps(names: Sequence[str]) -> list[int]:
    """The steps of complete checkpoints, the newest first."""
    matches = [re.fullmatch(r"step(\d+)\.json", name) for name in names]
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _remove(where: str, step: int) -> None:
    # The list first: without it there is no checkpoint, with it there must be all of one.
    remove(_list_of_files(where, step))
    remove(_folder(where, step))


def _remove_pickled(where: str) -> None:
    if read_text(join(where, OLD_LATEST)) is not None:
        logger.warning("%s is by an earlier version, which pickled, and is removed unread: the finetuning begins anew", where)
        remove(where)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    text = json.dumps(content)
    return json.dumps({"sha256": _sha256(text), "content": text})


def _read_list(where: str, step: int) -> dict[str, Any]:
    """The content that `_sealed` wrote. Raises _DamagedError."""
    address = _list_of_files(where, step)
    try:
        sealed = json.loads(read_text(address) or "")
        if sealed["sha256"] != _sha256(sealed["content"]):
            raise _DamagedError(f"{address} is not what its own sha256 says")
        content = dict(json.loads(sealed["content"]))
        if content["format"] != FORMAT:
            raise _DamagedError(f"{address} is of format {content['format']}, and this version reads {FORMAT}")
        return content
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{address} is no list of a checkpoint's files ({type(error).__name__})") from error


def _key(kind: str, name: str, start: int) -> str:
    return f"{kind}/{start}/{name}"


def _write(parts: Sequence[Part], folder: Path, worker: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Write `parts` into safetensors of about FILE_BYTES. Yields each one's name, and its sha256 and slices."""
    from safetensors.torch import save_file

    waiting = deque((part, piece) for part in parts for piece in part.pieces)
    number = 0
    while waiting:
        tensors: dict[str, torch.Tensor] = {}
        slices, size = [], 0
        while waiting and size < FILE_BYTES:
            part, (name, start, count, place) = waiting.popleft()
            for kind in KINDS:
                tensors[_key(kind, name, start)] = part.tensors[kind].detach()[place : place + count].cpu()
            slices.append((name, start, count))
            size += 4 * len(KINDS) * count
        file = f"{worker}-{number}.safetensors"
        save_file(tensors, folder / file)
        yield file, {"sha256": sha256_of(folder / file), "slices": slices}
        number += 1


def _intact_files(folder: str, content: dict[str, Any], parts: Sequence[Part], scratch: Path) -> dict[str, Path]:
    """The local path of each file that `parts` need, its content checked. Raises _DamagedError."""
    found: Counter[str] = Counter()
    paths = {}
    for file, entry in content["files"].items():
        overlaps = list(_overlaps(entry["slices"], parts))
        if not overlaps:
            continue
        if not re.fullmatch(r"worker\d+-\d+\.safetensors", file):
            raise _DamagedError(f"{folder} lists {file!r}, which is no name of a checkpoint's file")
        paths[file] = _local_copy(join(folder, file), scratch / file)
        if sha256_of(paths[file]) != entry["sha256"]:
            raise _DamagedError(f"{join(folder, file)} is not what was written (its sha256 differs)")
        for overlap in overlaps:
            found[overlap.name] += overlap.end - overlap.begin
    wanted: Counter[str] = Counter()
    for part in parts:
        for piece in part.pieces:
            wanted[piece.name] += piece.size
    if unlike := sorted(name for name in wanted if wanted[name] != found[name]):
        raise _DamagedError(f"{folder} has not all of {unlike[0]}")
    return paths


def _local_copy(address: str, copy: Path) -> Path:
    """A path of the file at `address`: its own, or a copy's. Raises _DamagedError if it is not there."""
    try:
        if is_local(address):
            local_path(address).stat()
            return local_path(address)
        file_system, path = filesystem(address)
        file_system.get_file(path, str(copy))
    except FileNotFoundError as error:
        raise _DamagedError(f"{address} is missing") from error
    return copy


class _Overlap(NamedTuple):
    """Numbers `begin` to `end` of the parameter `name`, both in a file's slice from `start` and in a part's piece."""

    name: str
    start: int
    begin: int
    end: int
    part: Part
    piece: Piece


def _overlaps(slices: Sequence[tuple[str, int, int]], parts: Sequence[Part]) -> Iterator[_Overlap]:
    pieces = defaultdict(list)
    for part in parts:
        for piece in part.pieces:
            pieces[piece.name].append((part, piece))
    for name, start, count in slices:
        for part, piece in pieces.get(name, ()):
            begin, end = max(start, piece.start), min(start + count, piece.start + piece.size)
            if begin < end:
                yield _Overlap(name, start, begin, end, part, piece)


def _fill(parts: Sequence[Part], entries: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    from safetensors import safe_open

    for file, path in files.items():
        with safe_open(path, framework="pt") as tensors:
            for name, start, begin, end, part, piece in _overlaps(entries[file]["slices"], parts):
                place = piece.place + begin - piece.start
                for kind in KINDS:
                    numbers = tensors.get_slice(_key(kind, name, start))[begin - start : end - start]
                    part.tensors[kind].detach()[place : place + end - begin].copy_(numbers)


# --- what else lies in an output ---


def trunk_state(output: str, step: int) -> str:
    """Where the trunk in `output` keeps the state that a branch leaves it with before `step`."""
    return join(output, STATES, f"step{step}")


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The logged steps of a finetuning, from its `metrics.jsonl`."""
    for line in path.read_text().splitlines():
        yield json.loads(line)


@patiently()
def save_result(member: Member, tensors: dict[str, torch.Tensor], log: list[dict[str, float]]) -> None:
    """Write a job's output: its logged steps, and what its `save` makes of the trained tensors."""
    with working_folder(member.output) as folder:
        (folder / METRICS_FILE).write_text("".join(json.dumps(entry) + "\n" for entry in log))
        member.job.save(folder, tensors, member.job)


def keep_result(output: str, metrics: dict[str, Any]) -> None:
    """Keep for a later call of the group that the job has ended well."""
    write_text(join(output, RESULT_FILE), json.dumps(metrics))


def read_result(output: str) -> dict[str, Any] | None:
    """The metrics of a job that has ended in an earlier call of its group, None for another, and for one that is damaged."""
    try:
        text = read_text(join(output, RESULT_FILE))
        return None if text is None else dict(json.loads(text))
    except (ValueError, TypeError):
        return None
