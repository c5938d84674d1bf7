"""Paths that may be local or URIs (``s3://``, ``gs://``, ``file://``, ...), through fsspec.

A stage works on local folders; the store may be anywhere. :func:`fetch` brings a folder or file here,
:func:`publish` sends one away. What is written here is on the disk, names included, when the call returns: a power
cut takes nothing that something written later speaks of.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedError, StoreUnreachableError, UserError
from pipelines.identity import sha256_of
from pipelines.object_store import (
    check_address,
    insist,
    missing_bucket,
    plain_errors,
    read_age,
    read_version,
    scheme_of,
    share_settings,
    unknown_scheme,
    write_version,
)

RECORD_FILE = "record.json"
"""Describes a complete artifact in its folder: "files" has the sha256 and the "bytes" of each, by its path there."""
DEFAULT_CACHE = "~/.cache/blindsweep"


def is_local(uri: str | os.PathLike[str]) -> bool:
    """Whether it is a path or a ``file://`` URI on this machine."""
    text = str(uri)
    return "://" not in text or text.startswith(("file://", "local://"))


def local_path(uri: str | os.PathLike[str]) -> Path:
    """The path of a local URI. Raises :class:`UserError` for a remote one."""
    text = str(uri)
    if not is_local(text):
        raise UserError(f"{text} is not on this machine; fetch it first or give a local path")
    return Path(text.split("://", 1)[1] if "://" in text else text).expanduser()


def absolute(uri: str | os.PathLike[str]) -> str:
    """A local address as an absolute path, which other processes can use; a remote one as it is."""
    return str(local_path(uri).resolve()) if is_local(uri) else str(uri)


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """Append path components to a path or URI."""
    stripped = [part.strip("/") for part in parts]
    text = str(uri)
    base = text if text.endswith("://") or text == "/" else text.rstrip("/")
    separator = "" if base.endswith("/") else "/"
    return base + separator + "/".join(stripped) if stripped else base


def is_plain_name(text: str) -> bool:
    """Whether it can name a file or folder and nothing elsewhere: printable, no slash, not hidden, at most 255 bytes long."""
    return (
        text.isprintable()
        and not text.startswith(".")
        and not {"/", "\\"} & set(text)
        and 0 < len(text.encode(errors="surrogateescape")) <= 255
    )


def is_inside(path: str) -> bool:
    """Whether a path that was read somewhere leads to a file below the folder that it is meant for: each part a plain name."""
    return all(map(is_plain_name, path.split("/")))


def filesystem(uri: str | os.PathLike[str]) -> tuple[Any, str]:
    """fsspec's filesystem and the path in it.

    Raises :class:`UserError` for a scheme that fsspec does not know or whose package is not installed, and for an address
    of an object store that names no bucket.
    """
    import fsspec  # here, so that reading configs and prompts stays quick

    check_address(str(uri))
    share_settings()
    text = str(local_path(uri)) if is_local(uri) else str(uri)
    try:
        # A listing kept from before would hide what other processes write.
        file_system, path = fsspec.core.url_to_fs(text, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise unknown_scheme(text, error) from error
    insist(file_system)
    return file_system, path


def arrow_filesystem(uri: str | os.PathLike[str]) -> tuple[Any | None, str]:
    """The same file system for pyarrow, as Ray Train takes it, and the path in it; None and an absolute path for a local one.

    pyarrow's own would find credentials and addresses in another way.
    """
    if is_local(uri):
        return None, absolute(uri)
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    file_system, path = filesystem(uri)
    return PyFileSystem(FSSpecHandler(file_system)), path


def check_store(uri: str | os.PathLike[str]) -> None:
    """Write, read, list and remove a small object below `uri`, unless it is local.

    Raises :class:`UserError` that names bucket, key and what to set if any of it is not possible. Buckets are not made.
    """
    check_address(str(uri))
    if is_local(uri):
        return
    file_system, root = filesystem(uri)
    folder = f"{root.rstrip('/')}/.check-{uuid.uuid4().hex}"
    try:
        with plain_errors(str(uri)):
            try:
                file_system.pipe_file(f"{folder}/object", folder.encode())
            except FileNotFoundError as error:
                raise missing_bucket(str(uri)) from error
            try:
                if file_system.cat_file(f"{folder}/object") != folder.encode():
                    raise UserError(f"{uri} does not give back what was written there; check what serves it")
                if len(file_system.find(folder)) != 1:
                    raise UserError(f"{uri} does not list what was written there; check what serves it")
            finally:
                file_system.rm_file(f"{folder}/object")
    except StoreUnreachableError as error:
        raise UserError(str(error)) from error


def fetch(
    uri: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    only: Collection[str] | None = None,
) -> str:
    """A local path with the content of ``uri``, a file or a folder.

    A local path or ``file://`` URI is returned as a plain path, uncopied. A remote one is downloaded once into ``cache``
    (``$BLINDSWEEP_CACHE``, by default ``~/.cache/blindsweep``). Of an artifact, or a part of one, what its record lists is
    downloaded and compared with it; the copy goes by its content. Of anything else, all is that does not lie below a name
    with a dot in front (a stage's working state); the copy goes by the address and by what is listed there (names, sizes, and
    checksums or times where the store gives them), so that changed content is fetched again. A copy that has lost files, or
    has them in other sizes, is made again. With `only`, paths within a remote folder, these files alone are fetched.

    Raises :class:`UserError` if nothing is there, :class:`DamagedError` for a file that is not what the record says, and
    OSError for a download that stays short.
    """
    if is_local(uri):
        path = local_path(uri)
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path")
        return str(path)
    with plain_errors(str(uri)):
        return _fetch_remote(str(uri), cache, only)


def cached(uri: str, only: Collection[str] | None = None) -> str | None:
    """What :func:`fetch` would return for a remote address, None where that is not in the cache. Looks at what is listed."""
    with plain_errors(uri):
        target, result, expected = _copy_of(uri, None, only)
    return str(result) if _is_whole(target, expected) else None


def names_below(uri: str) -> list[str] | None:
    """The paths of all files in a remote folder, None where it is a file. Raises UserError where nothing is there."""
    file_system, remote = filesystem(uri)
    with plain_errors(uri):
        if not file_system.exists(remote):
            raise _missing(uri)
        return None if file_system.isfile(remote) else list(files_below(file_system, remote))


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    file_system, path = filesystem(uri)
    with plain_errors(uri):
        return bool(file_system.exists(path))


def _missing(uri: str) -> UserError:
    return UserError(f"{uri} does not exist or is empty; check the address and the credentials")


def _copy_of(
    uri: str, cache: str | os.PathLike[str] | None, only: Collection[str] | None
) -> tuple[Path, Path, Mapping[str, "Described"]]:
    """Where the copy of a remote address is or will be: its folder, what to return of it, and the files that it has."""
    file_system, remote = filesystem(uri)
    if not file_system.exists(remote):
        raise _missing(uri)
    name = remote.rstrip("/").rsplit("/", 1)[-1]
    is_file = file_system.isfile(remote)
    expected = _recorded(file_system, remote)
    if expected is not None and only is not None:
        expected = {path: file for path, file in expected.items() if path in only}
        expected = expected if len(expected) == len(set(only)) else None
    if expected is not None:
        key = hashlib.sha256(repr(sorted((path, file["sha256"]) for path, file in expected.items())).encode()).hexdigest()[:16]
    else:
        listing = {name: file_system.info(remote)} if is_file else files_below(file_system, remote)
        listing = {path: info for path, info in listing.items() if only is None or path in only}
        expected = {path: {"bytes": info.get("size")} for path, info in listing.items()}
        key = _listing_hash(str(uri), listing)
    root = Path(cache or os.environ.get("BLINDSWEEP_CACHE") or DEFAULT_CACHE).expanduser()
    target = root / f"{name}-{key}"
    return target, target / name if is_file else target, expected


def _fetch_remote(uri: str, cache: str | os.PathLike[str] | None, only: Collection[str] | None) -> str:
    target, result, expected = _copy_of(uri, cache, only)
    file_system, remote = filesystem(uri)
    root, is_file = target.parent, result != target
    if _is_whole(target, expected):
        return str(result)
    make_cache(root, "BLINDSWEEP_CACHE")
    partial = Path(tempfile.mkdtemp(dir=root, prefix=".partial-"))
    try:
        with naming_full_disk(root):
            for relative, file in expected.items():
                destination = partial / relative
                destination.parent.mkdir(parents=True, exist_ok=True)
                _download(file_system, remote if is_file else f"{remote.rstrip('/')}/{relative}", destination, file)
        if target.exists() and not _is_whole(target, expected):
            # Renamed first: nobody is to meet a half-removed copy.
            broken = root / f".broken-{target.name}-{uuid.uuid4().hex[:8]}"
            target.rename(broken)
            shutil.rmtree(broken, ignore_errors=True)
        try:
            partial.rename(target)
        except OSError:
            # Another process finished the same download between our check and our rename.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return str(result)


def make_cache(folder: Path, setting: str) -> None:
    """Make a folder for copies of what is elsewhere. Raises UserError, naming the `setting`, where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        text = f"{folder} is to hold copies of what is in remote stores, and cannot be written ({error.strerror})"
        raise UserError(f"{text}; set {setting} to a folder that can") from error


Described = Mapping[str, Any]
"""What is known of a file: "bytes", None where that is not said, and in a record "sha256"."""


def _recorded(file_system: Any, remote: str) -> dict[str, Described] | None:
    """The files of a remote folder, or the one file, by its artifact's record, which lies there or up to two folders above.

    None for what is no part of a complete artifact. Raises DamagedError for a record that cannot be read.
    """
    parts = remote.rstrip("/").split("/")
    for depth in range(min(3, len(parts) - 1)):
        folder, below = "/".join(parts[: len(parts) - depth]), "/".join(parts[len(parts) - depth :])
        # Working state is in no record; the store itself may lie in a hidden folder.
        if any(part.startswith(".") for part in below.split("/")):
            return None
        try:
            text = file_system.cat_file(f"{folder}/{RECORD_FILE}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            files: dict[str, Described] = json.loads(text)["files"]
            described = {path: {"sha256": str(file["sha256"]), "bytes": int(file["bytes"])} for path, file in files.items()}
            if outside := [path for path in described if not is_inside(path)]:
                raise ValueError(f"its file {outside[0]!r} does not lie in its folder")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{folder}/{RECORD_FILE} is not a readable record ({error})") from error
        if below in described:
            return {parts[-1]: described[below]}
        prefix = f"{below}/" if below else ""
        return {path.removeprefix(prefix): file for path, file in described.items() if path.startswith(prefix)} or None
    return None


def _is_whole(folder: Path, expected: Mapping[str, Described]) -> bool:
    """Whether a copy has its files in their sizes; what is in them was compared when they came."""
    try:
        return folder.is_dir() and all(
            file["bytes"] in (None, (folder / path).stat().st_size) for path, file in expected.items()
        )
    except (FileNotFoundError, NotADirectoryError):
        return False


def _download(file_system: Any, remote: str, destination: Path, expected: Described) -> None:
    """Download one file; once more if it is not what it should be, which may be the network's fault."""
    for is_last in (False, True):
        try:
            file_system.get_file(remote, str(destination))
        except FileNotFoundError as error:
            if "sha256" not in expected:
                raise
            raise DamagedError(f"{file_system.unstrip_protocol(remote)} is missing, though its record lists it") from error
        size = destination.stat().st_size
        sha256 = sha256_of(destination) if "sha256" in expected else None
        if expected["bytes"] in (None, size) and sha256 in (None, expected.get("sha256")):
            return
        if is_last and sha256 is not None:
            raise DamagedError(
                f"{file_system.unstrip_protocol(remote)} has {size:,} bytes with sha256 {sha256[:12]}…; its record says "
                f"{expected['bytes']:,} bytes, {expected['sha256'][:12]}…"
            )
    raise OSError(f"{file_system.unstrip_protocol(remote)}: {size:,} bytes came of {expected['bytes']:,}; try again")


def files_below(file_system: Any, folder: str) -> dict[str, dict[str, Any]]:
    """A folder's files that are not hidden: path within the folder, and what the store says of it; in the paths' order."""
    prefix = folder.rstrip("/") + "/"
    listing = sorted(file_system.find(folder, detail=True).items())
    files = {path.removeprefix(prefix): info for path, info in listing}
    # Object stores have no folders: consoles and pyarrow put an empty object there, whose name ends in a slash.
    return {
        path: info
        for path, info in files.items()
        if not f"/{path}".endswith("/") and not any(part.startswith(".") for part in path.split("/"))
    }


def _listing_hash(uri: str, files: dict[str, dict[str, Any]]) -> str:
    stamps = ("ETag", "etag", "md5Hash", "crc32c", "LastModified", "last_modified", "mtime", "created")
    listing = [
        (info["name"], info.get("size"), [str(info[stamp]) for stamp in stamps if stamp in info])
        for _, info in sorted(files.items())
    ]
    return hashlib.sha256(repr((uri, listing)).encode()).hexdigest()[:16]


def publish(local_folder: str | os.PathLike[str], uri: str | os.PathLike[str]) -> None:
    """Copy the files of a local folder to ``uri``, replacing what has the same name there.

    To a local address the whole folder appears by one rename. An object store has no rename, so there a
    reader must wait for the record that the caller writes last. A folder published onto itself is left alone.
    Raises :class:`UserError` if the folder does not exist.
    """
    source = Path(local_folder)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; publish takes the folder that a stage wrote")
    if is_local(uri):
        target = local_path(uri)
        if target.exists() and target.resolve() == source.resolve():
            return
        make_folder(target.parent)
        partial = target.parent / f".partial-{target.name}-{uuid.uuid4().hex[:8]}"
        try:
            with naming_full_disk(target):
                if target.exists():
                    shutil.copytree(target, partial)
                shutil.copytree(source, partial, dirs_exist_ok=True)
                sync_tree(partial)
            if target.exists():
                retired = target.parent / f".retired-{target.name}-{uuid.uuid4().hex[:8]}"
                target.rename(retired)
                partial.rename(target)
                shutil.rmtree(retired)
            else:
                partial.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return
    file_system, remote = filesystem(uri)
    with plain_errors(str(uri)):
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            destination = f"{remote.rstrip('/')}/{path.relative_to(source).as_posix()}"
            _make_parents(file_system, destination)
            file_system.put_file(str(path), destination)


def _make_parents(file_system: Any, path: str) -> None:
    # An object store has no folders: asked for one, fsspec would make a bucket that is missing.
    if not scheme_of(file_system):
        file_system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)


def read_text(uri: str | os.PathLike[str]) -> str | None:
    """The text of a file, None if there is no such file."""
    file_system, path = filesystem(uri)
    try:
        with plain_errors(str(uri)), file_system.open(path, "rb") as file:
            return bytes(file.read()).decode()
    except FileNotFoundError:
        return None


def read_with_age(uri: str | os.PathLike[str]) -> tuple[bytes, float] | None:
    """A file's content, and the seconds since it was written; None if there is no such file.

    On S3 both times are the store's; elsewhere what the store says of the file is compared with this machine's clock.
    """
    file_system, path = filesystem(uri)
    try:
        with plain_errors(str(uri)):
            if scheme_of(file_system) == "s3":
                return read_age(file_system, path)
            if is_local(uri):
                # Of the file that is read: another may have taken its name since.
                with open(path, "rb") as file:
                    return file.read(), max(time.time() - os.fstat(file.fileno()).st_mtime, 0.0)
            age = (datetime.now(UTC) - file_system.modified(path)).total_seconds()
            return bytes(file_system.cat_file(path)), max(age, 0.0)
    except FileNotFoundError:
        return None


def write_bytes(uri: str | os.PathLike[str], content: bytes) -> None:
    """Write or replace a whole file, so that a reader, also after a power cut, meets the old content or the new."""
    if not is_local(uri):
        # An object appears when its upload is complete.
        file_system, path = filesystem(uri)
        with plain_errors(str(uri)):
            _make_parents(file_system, path)
            file_system.pipe_file(path, content)
        return
    target = local_path(uri)
    with _partial(target, content) as partial:
        partial.replace(target)
        sync_folder(target.parent)


@contextlib.contextmanager
def _partial(target: Path, content: bytes) -> Iterator[Path]:
    """:func:`partial_file`, with `content` on the disk."""
    with partial_file(target) as partial:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """A name beside `target` to write its file under until it is whole; removed at the end if it is still there."""
    make_folder(target.parent)
    # Starts with a dot and ends otherwise, so that a reader of the folder never takes it for a finished file.
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        yield partial
    except OSError as error:
        # By the name that people know.
        if error.filename in (None, str(partial)) and error.filename2 is None:
            error.filename = str(target)
        raise
    finally:
        # Where nothing could be written, nothing can be removed, either; what is left is nobody's file.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Have what is raised in here for want of room on a disk say that it is the one of `path`."""
    try:
        yield
    except Exception as error:
        _name_full_disk(error, path)
        raise


def _name_full_disk(error: BaseException, path: Path) -> None:
    """Have an error say that the disk of `path` is full. Python does not when it writes, and libraries raise their own."""
    if not is_disk_full(error):
        return
    if not isinstance(error, OSError) or error.errno is None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    error.filename = error.filename or str(path)


def is_disk_full(error: BaseException) -> bool:
    """Whether there is no room on a disk, or its user's quota is used up. Libraries pass on no more than the text of it."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or any(os.strerror(number) in str(error) for number in full)


def write_text(uri: str | os.PathLike[str], text: str) -> None:
    """Write or replace a text file, as :func:`write_bytes`."""
    write_bytes(uri, text.encode())


def make_folder(folder: Path) -> None:
    """Make a local folder and those above it that are missing; their names are on the disk afterwards."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Put the names in a local folder on the disk: a file's own sync does not."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: str | os.PathLike[str]) -> None:
    """Put a local folder with all that is below it on the disk, its own name included.

    Files that a library made for their owner only, as safetensors does, become as readable and writable as their folder.
    """
    root = Path(folder)
    for path, _, names in os.walk(root, topdown=False):
        granted = root.stat().st_mode & 0o666
        for name in names:
            # What others remove meanwhile is working state.
            with contextlib.suppress(FileNotFoundError):
                _settle(os.path.join(path, name), granted)
        with contextlib.suppress(FileNotFoundError):
            sync_folder(path)
    sync_folder(root.parent)


def _settle(file: str, granted: int) -> None:
    if os.path.islink(file):
        return
    mode = os.stat(file).st_mode
    if mode | granted != mode:
        # Another user's, who was stopped in the midst of it.
        with contextlib.suppress(PermissionError):
            os.chmod(file, mode | granted)
    _sync(file, os.O_RDONLY)


def _sync(path: str | os.PathLike[str], flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not flags & os.O_DIRECTORY:
            raise
    finally:
        os.close(descriptor)


def can_compare(uri: str | os.PathLike[str]) -> bool:
    """Whether :func:`write_if_absent` and :func:`replace_if_unchanged` are possible at an address: local, S3 and GCS."""
    return is_local(uri) or bool(scheme_of(filesystem(uri)[0]))


def read_with_version(uri: str | os.PathLike[str]) -> tuple[bytes, str] | None:
    """A file's content and the version that this is, for :func:`replace_if_unchanged`; None if there is no such file."""
    if is_local(uri):
        try:
            content = local_path(uri).read_bytes()
        except FileNotFoundError:
            return None
        return content, _local_version(content)
    file_system, path = filesystem(uri)
    with plain_errors(str(uri)):
        return read_version(file_system, path)


def write_if_absent(uri: str | os.PathLike[str], content: bytes) -> str | None:
    """Write a whole file if there is none, and return its version; None if there is one, which is left.

    Of many writers at once one succeeds. `content` must differ from what others write there.
    """
    if not is_local(uri):
        file_system, path = filesystem(uri)
        with plain_errors(str(uri)):
            return write_version(file_system, path, content, None)
    target = local_path(uri)
    with _partial(target, content) as partial:
        try:
            # Unlike a rename, it fails if the name is taken.
            os.link(partial, target)
        except FileExistsError:
            return None
        sync_folder(target.parent)
    return _local_version(content)


def replace_if_unchanged(uri: str | os.PathLike[str], content: bytes, version: str) -> str | None:
    """Replace a file that is still the `version` that was read or written, and return the new one; None if it is another.

    Of many writers at once one succeeds. `content` must differ from what others write there.
    """
    if not is_local(uri):
        file_system, path = filesystem(uri)
        with plain_errors(str(uri)):
            return write_version(file_system, path, content, version)
    target = local_path(uri)
    try:
        file = target.open("rb")
    except FileNotFoundError:
        return None
    with file:
        # Who waited for the lock may hold a file that has been replaced meanwhile, and is no longer at this path.
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            is_current = os.path.samestat(target.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return None
        if not is_current or _local_version(file.read()) != version:
            return None
        with _partial(target, content) as partial:
            partial.replace(target)
            sync_folder(target.parent)
    return _local_version(content)


def _local_version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def remove(uri: str | os.PathLike[str]) -> None:
    """Remove a folder and all that is in it, if it is there."""
    file_system, path = filesystem(uri)
    with plain_errors(str(uri)):
        if file_system.exists(path):
            file_system.rm(path, recursive=True)


def move(uri: str | os.PathLike[str], to: str | os.PathLike[str]) -> None:
    """Give a folder another address in the same store, in the place of what is there."""
    remove(to)
    file_system, path = filesystem(uri)
    if is_local(uri):
        local_path(uri).rename(local_path(to))
        return
    with plain_errors(str(uri)):
        target = filesystem(to)[1]
        for below, info in files_below(file_system, path).items():
            file_system.copy(info["name"], f"{target.rstrip('/')}/{below}")
        file_system.rm(path, recursive=True)


class working_folder:  # in lower case: it is used like a function, `with working_folder(output) as folder`
    """A local folder to write `output` in: `output` itself if it is local, else a temporary one, published on success.

    Either is on the disk then.
    """

    def __init__(self, output: str) -> None:
        self.output = output

    def __enter__(self) -> Path:
        self.folder = local_path(self.output) if is_local(self.output) else Path(tempfile.mkdtemp(prefix="blindsweep-"))
        make_folder(self.folder)
        return self.folder

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        try:
            if kind is None and is_local(self.output):
                sync_tree(self.folder)
            elif kind is None:
                publish(str(self.folder), self.output)
        finally:
            if not is_local(self.output):
                shutil.rmtree(self.folder, ignore_errors=True)
        if error is not None:
            _name_full_disk(error, self.folder)
