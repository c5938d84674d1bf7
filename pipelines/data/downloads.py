"""MultiNLI 1.0, HANS and challenge sets, from their official places or from copies at hand, to one folder.

    fetch_nli_data("data")                          # downloads
    fetch_nli_data("data", copies="/mnt/corpora")   # takes copies
    fetch_nli_data("data", challenges=["med"])      # and challenge sets, each from its publisher

Either way the folder then holds the official files that :mod:`pipelines.data.sources` reads (of MultiNLI's archive only
these), ``parquet/`` with what that module makes of them, and ``origin.json``: for each file where it is from (``url``
or ``copied_from``, and the ``archive`` that it was extracted from), ``sha256``, ``bytes``, ``time`` (UTC) and
``is_official``; for the Parquet its ``config`` and ``metrics``.

``is_official`` says whether it is the complete official file: true where a published checksum vouches for it, false
where its content or its number of rows is another, null where it has the official number of rows and no checksum can
tell. Published checksums are of MultiNLI's archive and of HANS's file. There is none of the three files in the
archive: their hashes are recorded as they are found in the archive that was verified. Of challenge sets nobody publishes
checksums; theirs are of the files as they were when this was written.
"""

import contextlib
import fcntl
import http.client
import json
import os
import re
import shutil
import ssl
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pipelines.data.challenge_sets import CHALLENGE_FOLDER, CHALLENGE_SETS, RAW, challenge_sets
from pipelines.data.sources import (
    FILES,
    HANS_FILE,
    MATCHED_FILE,
    MISMATCHED_FILE,
    NUM_LABELLED_ROWS,
    TRAIN_FILE,
    find_file,
    missing_files,
    nli_sources_config,
    num_lines,
    prepare_nli_sources,
)
from pipelines.errors import UserError
from pipelines.identity import identity, sha256_of
from pipelines.storage import partial_file, write_text

ORIGIN_FILE = "origin.json"
PARQUET_FOLDER = "parquet"


@dataclass(frozen=True)
class Official:
    """A file at its official place. `members` maps the files wanted of a zip archive to their paths in it. `place` is where the
    folder that gets it has the file, if not under its name.
    """

    url: str
    sha256: str
    num_bytes: int
    members: Mapping[str, str] = field(default_factory=dict)
    place: str = ""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that a folder has of it."""
        return tuple(self.members) or (self.place or self.name,)


# Size and hash as TensorFlow Datasets (url_checksums/multi_nli.txt) and Hugging Face (multi_nli/dataset_infos.json)
# record them; ParlAI has the same hash.
MULTINLI = Official(
    "https://cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip",
    "049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822",
    226_850_426,
    {name: f"multinli_1.0/{name}" for name in (TRAIN_FILE, MATCHED_FILE, MISMATCHED_FILE)},
)
# Size and hash as Hugging Face records them (hans/dataset_infos.json), and as the file has them.
HANS = Official(
    f"https://raw.githubusercontent.com/tommccoy1/hans/7299f6f657089ce06a0f98e7e81f8d0f5b7741ce/{HANS_FILE}",
    "c55b62feef9913070e88f38938dc2492018c945ac81f70139346472494124e79",
    15_462_062,
)
OFFICIAL = (MULTINLI, HANS)


def _official_challenges(names: Sequence[str]) -> tuple[Official, ...]:
    """The files of challenge sets. Raises UserError for an unknown name."""
    return tuple(
        Official(file.url, file.sha256, file.num_bytes, place=f"{CHALLENGE_FOLDER}/{challenge.test_set.name}/{file.path}")
        for challenge in challenge_sets(names)
        for file in challenge.files
    )


OFFICIAL_ROWS = {TRAIN_FILE: NUM_LABELLED_ROWS, MATCHED_FILE: 10_000, MISMATCHED_FILE: 10_000}
"""Lines of MultiNLI's files, those without a gold label included."""

MAX_MEMBER_BYTES = 2 << 30
"""No file in an archive is taken that claims to be larger; MultiNLI's largest has about half a gigabyte."""
BLOCK = 1 << 18
TIMEOUT_S = 30.0
TRIES = 3
"""So many connections in a row may bring nothing new."""
PAUSE_S = 1.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that can be others a moment later."""
BY_HAND = "or get the file by other means and give its folder with --from"

Say = Callable[[str], None]
OnBytes = Callable[[str, int, int], None]
"""Called with a download's name, its bytes so far, and its bytes in all."""


def _nothing(*_: object) -> None:
    pass


def fetch_nli_data(
    to: str | os.PathLike[str],
    *,
    copies: str | os.PathLike[str] | None = None,
    challenges: Sequence[str] = (),
    say: Say = _nothing,
    on_bytes: OnBytes = _nothing,
    **overrides: Any,
) -> dict[str, Any]:
    """Put both data sets, and the challenge sets named, into the folder `to`, and return what its ``origin.json`` says.

    Without `copies` they are downloaded and verified; what is there and right is left, and a broken download goes on
    where it ended. `copies` is a folder with the files (as :mod:`pipelines.data.sources` finds them) or with
    ``multinli_1.0.zip``; copies may be incomplete or other files, which ``is_official`` then says. Those of a challenge set
    lie in ``challenge/<name>/`` there, or in ``<name>/``, in the folder itself, or as in the publisher's repository. Where
    challenge sets are named and `to` has MultiNLI and HANS, these are left as they are. `overrides` are fields of
    :class:`~pipelines.data.sources.NLISourcesConfig`.

    Raises :class:`UserError` for an unknown challenge set, a place that cannot be reached or does not have the file, content
    that is not the published one, a missing or unreadable copy, a file of the same name in `to` that was not put there by
    this function, a second fetch into the folder at the same time, and as :mod:`pipelines.data.sources` does.
    """
    folder = Path(to).expanduser()
    official_challenges = _official_challenges(challenges)
    if copies is not None and not Path(copies).expanduser().is_dir():
        raise UserError(f"--from {copies} is not a folder; give the one that holds {', '.join(FILES)}")
    with _new_or_present(folder), _sole_user(folder):
        origin = _read_origin(folder)
        files = origin["files"]
        has_both = official_challenges and not missing_files(str(folder))
        if has_both:
            say("MultiNLI and HANS: there already")
        for official in (*(() if has_both else OFFICIAL), *official_challenges):
            if copies is None:
                files.update(_from_official_place(official, folder, files, say, on_bytes))
            else:
                files.update(_from_copies(official, Path(copies).expanduser(), folder, files, say))
            # Now, not at the end: what an archive's files are is known only from here.
            _write_origin(folder, origin)
        say(f"writing {folder / PARQUET_FOLDER}")
        known = [name for name in CHALLENGE_SETS if name in challenges or _is_known(name, files)]
        config = nli_sources_config(str(folder), known, **overrides)
        metrics = prepare_nli_sources(config, str(folder / PARQUET_FOLDER), folder=str(folder))
        origin["parquet"] = {"config": identity(config), "metrics": metrics}
        _write_origin(folder, origin)
    return origin


def _is_known(challenge: str, files: Mapping[str, Any]) -> bool:
    return any(name.startswith(f"{CHALLENGE_FOLDER}/{challenge}/") for name in files)


Entries = dict[str, dict[str, Any]]
"""File's name → what ``origin.json`` says of it."""


def _from_official_place(official: Official, folder: Path, known: Entries, say: Say, on_bytes: OnBytes) -> Entries:
    if _is_there(official, folder, known):
        say(f"{', '.join(official.files)}: there already, as published")
        # HANS may have been put there by hand.
        here = {"copied_from": str(folder.absolute())}
        is_known = {name: known.get(name, {}).get("is_official") for name in official.files}
        return {name: known[name] if is_known[name] else _entry(folder / name, here, True) for name in official.files}
    _refuse_to_overwrite(official.files, folder, known)
    part = _download(official, folder, say, on_bytes)
    say(f"{official.name}: {official.num_bytes:,} bytes, sha256 {official.sha256[:12]}… as published")
    source = {"url": official.url}
    if official.members:
        entries = _extract(part, official, folder, source)
        part.unlink()
        return entries
    (file,) = official.files
    os.replace(part, folder / file)
    return {file: _entry(folder / file, source, True)}


def _from_copies(official: Official, copies: Path, folder: Path, known: Entries, say: Say) -> Entries:
    archive = copies / official.name
    if official.members and archive.is_file():
        if (sha256 := sha256_of(archive)) != official.sha256:
            raise UserError(
                f"{archive} has sha256 {sha256[:12]}…, the official one {official.sha256[:12]}…: it is cut off or another "
                "file; download it again, or put the files that it holds in its place"
            )
        if _is_there(official, folder, known):
            say(f"{', '.join(official.files)}: there already, as in {archive}")
            return {name: known[name] for name in official.files}
        _refuse_to_overwrite(official.files, folder, known)
        return _extract(archive, official, folder, {"copied_from": str(archive.absolute())})
    paths = {name: _find_copy(copies, official, name) for name in official.files}
    if missing := [name for name, path in paths.items() if path is None]:
        archived = f", and no {official.name}" if official.members else ""
        raise UserError(f"--from {copies} has no {', '.join(missing)}{archived}; add it, or download without --from")
    entries = {}
    for name, path in paths.items():
        assert path is not None
        sha256, target = sha256_of(path), folder / name
        if target.is_file() and sha256_of(target) == sha256:
            say(f"{name}: there already, as in {copies}")
            if known.get(name, {}).get("sha256") == sha256:
                entries[name] = known[name]
                continue
        else:
            _refuse_to_overwrite([name], folder, known)
            with partial_file(target) as partial:
                shutil.copyfile(path, partial)
                partial.replace(target)
            say(f"{name}: copied from {path}")
        is_official = _is_official(official, name, target, sha256, say)
        entries[name] = _entry(target, {"copied_from": str(path.absolute())}, is_official)
    return entries


def _find_copy(copies: Path, official: Official, name: str) -> Path | None:
    if not official.place:
        return find_file(copies, name)
    _, challenge, path = official.place.split("/", 2)
    in_repository = official.url.removeprefix(f"{RAW}/").split("/", 3)[-1]
    places = (official.place, f"{challenge}/{path}", path, in_repository)
    return next((copies / place for place in places if (copies / place).is_file()), None)


def _is_official(official: Official, name: str, path: Path, sha256: str, say: Say) -> bool | None:
    if not official.members:
        if sha256 != official.sha256:
            say(f"{name}: not the official file, whose sha256 is {official.sha256[:12]}…")
        return sha256 == official.sha256
    if (num_rows := num_lines(path)) != OFFICIAL_ROWS[name]:
        say(f"{name}: not the complete official file: {num_rows:,} rows, that one has {OFFICIAL_ROWS[name]:,}")
        return False
    return None


def _is_there(official: Official, folder: Path, known: Entries) -> bool:
    """Whether all files are there as the published checksum has them, or as they were found in the archive that has it."""
    for name in official.files:
        path, entry = folder / name, known.get(name, {})
        if not path.is_file():
            return False
        of_archive = entry.get("archive", {}).get("sha256") == official.sha256
        expected = entry.get("sha256") if of_archive else official.sha256
        if sha256_of(path) != expected:
            return False
    return True


def _refuse_to_overwrite(names: tuple[str, ...] | list[str], folder: Path, known: Entries) -> None:
    for name in names:
        if (folder / name).exists() and name not in known:
            raise UserError(
                f"{folder / name} is there, is not the file to be put there, and {ORIGIN_FILE} does not know it; move it "
                f"away, give another --to, or keep it with --from {folder}"
            )


def _extract(archive: Path, official: Official, folder: Path, source: Mapping[str, str]) -> Entries:
    """Only the named members, each to a name of our own, none larger than MAX_MEMBER_BYTES."""
    entries = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for name, member in official.members.items():
                # A member can hold no more than it claims: zipfile stops there, and compares its checksum.
                if (claimed := opened.getinfo(member).file_size) > MAX_MEMBER_BYTES:
                    raise UserError(
                        f"{member} in {archive} claims to have {claimed:,} bytes, more than {MAX_MEMBER_BYTES:,}; "
                        "it is not MultiNLI's: get the archive from its official place"
                    )
                with partial_file(folder / name) as partial:
                    with opened.open(member) as packed, partial.open("wb") as file:
                        shutil.copyfileobj(packed, file, BLOCK)
                    partial.replace(folder / name)
                of_archive = {"sha256": official.sha256, "bytes": official.num_bytes, "member": member}
                entries[name] = _entry(folder / name, {**source, "archive": of_archive}, True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive} is not the archive it should be ({error}); get it from {official.url}") from error
    return entries


def _entry(path: Path, source: Mapping[str, Any], is_official: bool | None) -> dict[str, Any]:
    return {
        **source,
        "sha256": sha256_of(path),
        "bytes": path.stat().st_size,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_official": is_official,
    }


def _download(official: Official, folder: Path, say: Say, on_bytes: OnBytes) -> Path:
    """The verified file, still under its name while it is incomplete."""
    part = folder / f"{official.place or official.name}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    if _size(part) > official.num_bytes:
        part.unlink()
    is_resumed = _size(part) > 0
    _receive_all(official, part, say, on_bytes)
    if is_resumed and sha256_of(part) != official.sha256:
        say(f"{official.name}: what was there did not belong to it; starting again")
        part.unlink()
        _receive_all(official, part, say, on_bytes)
    if (sha256 := sha256_of(part)) != official.sha256:
        part.unlink()
        raise UserError(
            f"{official.url} sent content with sha256 {sha256[:12]}…, the published one is {official.sha256[:12]}…: it was "
            f"changed there or on the way; nothing of it is kept: run the same command again, {BY_HAND}"
        )
    return part


def _receive_all(official: Official, part: Path, say: Say, on_bytes: OnBytes) -> None:
    most, num_futile = _size(part), 0
    while _size(part) < official.num_bytes:
        problem = _receive(official, part, on_bytes)
        if not problem:
            return
        # A server without ranges begins anew each time, so that only more than ever is progress.
        num_futile = 0 if _size(part) > most else num_futile + 1
        most = max(most, _size(part))
        if num_futile == TRIES:
            raise UserError(
                f"{official.url} {problem}, {TRIES} times in a row ({_size(part):,} of {official.num_bytes:,} bytes are here); "
                f"check the network and proxy and run the same command again, which goes on from there, {BY_HAND}"
            )
        say(f"{official.name}: {problem}; trying again")
        time.sleep(num_futile * PAUSE_S)


def _receive(official: Official, part: Path, on_bytes: OnBytes) -> str:
    """Go on with `part` until the server is done; returns what went wrong, empty if nothing.

    Raises :class:`UserError` for what cannot be another a moment later.
    """
    num_bytes = _size(part)
    # Compressed on the way, the ranges and the length would be others.
    headers = {"User-Agent": "blindsweep", "Accept-Encoding": "identity"}
    if num_bytes:
        headers["Range"] = f"bytes={num_bytes}-"
    try:
        with urlopen(Request(official.url, headers=headers), timeout=TIMEOUT_S) as response:
            if response.status == http.client.PARTIAL_CONTENT:
                sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
                if not sent or int(sent[1]) != num_bytes:
                    part.unlink()
                    return "sent another range than it was asked for"
                total = sent[2]
            else:
                num_bytes = 0
                total = response.headers.get("Content-Length") or "*"
            if total != "*" and int(total) != official.num_bytes:
                raise UserError(
                    f"{official.url} offers {int(total):,} bytes, the published file has {official.num_bytes:,}: it was "
                    f"changed or something answers in its place; look at it in a browser, {BY_HAND}"
                )
            with part.open("ab" if num_bytes else "wb") as file:
                while block := response.read1(min(BLOCK, official.num_bytes - num_bytes)):
                    file.write(block)
                    num_bytes += len(block)
                    on_bytes(official.name, num_bytes, official.num_bytes)
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
        elif error.code not in BUSY:
            raise UserError(
                f"{official.url} answers {error.code} {error.reason}: it has moved, or something stands in the way; look at it "
                f"in a browser, {BY_HAND}"
            ) from error
        return f"answers {error.code} {error.reason}"
    # Not every OSError: a full disk is not the network's fault.
    except (URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", error)
        return f"cannot be reached or breaks off ({getattr(reason, 'strerror', None) or reason})"
    return "" if num_bytes == official.num_bytes else "breaks off before the end"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _new_or_present(folder: Path) -> Iterator[None]:
    """The folder is there; one that was made for this and got nothing goes again, because commands look for it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _sole_user(folder: Path) -> Iterator[None]:
    """Two writers of one .part file would spoil it. The lock falls with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another fetch is writing into {folder}; wait for it, or give another --to") from error
        yield
    finally:
        os.close(descriptor)


def _read_origin(folder: Path) -> dict[str, Any]:
    path = folder / ORIGIN_FILE
    if not path.exists():
        return {"files": {}}
    try:
        origin = json.loads(path.read_bytes())
        return {**origin, "files": {name: dict(entry) for name, entry in origin["files"].items()}}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and the files beside it, or give another --to") from error


def _write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    write_text(folder / ORIGIN_FILE, json.dumps(origin, indent=1, ensure_ascii=False) + "\n")
