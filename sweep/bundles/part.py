"""A part of a bundle: one zip file with records, pieces of their artifacts' files, and the study that they are of."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedError, UserError
from pipelines.storage import RECORD_FILE, is_inside
from sweep.graph.identity import SHORT
from sweep.graph.integrity import WEIGHTS
from sweep.graph.records import ArtifactId, Record, Study
from sweep.graph.sealed import seal, unseal

FORMAT = 1
HEADER, STUDY = "bundle.json", "study.json"
LEVEL = 6
"""Of zlib's compression."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every member, so that equal content makes equal files."""
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged part ends in: zipfile has a RuntimeError for a method or an encryption that there is not."""
ENTRY_BYTES = 500
"""What a piece takes in a part beside its content and its name: its entries in the zip file and in the header, at most."""


class NoPartError(UserError):
    """A whole zip file that is no part of a bundle, or one that this version cannot read."""


@dataclass(frozen=True)
class Piece:
    """`num_bytes` of an artifact's file, from `offset` on, and their sha256 in hex."""

    artifact: ArtifactId
    path: str
    offset: int
    num_bytes: int
    sha256: str

    @property
    def member(self) -> str:
        """Its name in the zip file."""
        return f"{folder_name(self.artifact)}/{self.path}@{self.offset}"


@dataclass(frozen=True)
class Part:
    """A part that was read. `records`, by fingerprint, are of all artifacts in it."""

    path: Path
    study: Study
    records: Mapping[str, Record]
    pieces: tuple[Piece, ...]

    def content(self, piece: Piece) -> bytes:
        with zipfile.ZipFile(self.path) as file:
            return file.read(piece.member)


def folder_name(artifact: ArtifactId) -> str:
    """`stage/slug-fingerprint12`, an artifact's folder in a store."""
    return f"{artifact.stage}/{artifact.slug}-{artifact.fingerprint[:SHORT]}"


def bundled_files(record: Record) -> dict[str, int]:
    """The files of an artifact that a bundle takes along, all but weights, with their bytes."""
    return {path: int(file["bytes"]) for path, file in record.files.items() if not path.endswith(WEIGHTS)}


def packed_size(content: bytes) -> int:
    """The bytes that `content` takes in a part."""
    return min(len(content), len(zlib.compress(content, LEVEL)))


def part_bytes(study: Study, records: Iterable[Record], pieces: Mapping[Piece, bytes]) -> bytes:
    """The file that a part is."""
    records = list(records)
    header = {
        "format": FORMAT,
        "study": study.experiment,
        "artifacts": [_named(record.id) for record in records],
        "pieces": [
            {
                **_named(piece.artifact),
                "path": piece.path,
                "offset": piece.offset,
                "num_bytes": piece.num_bytes,
                "sha256": piece.sha256,
            }
            for piece in pieces
        ],
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        _add(file, HEADER, seal(header).encode())
        _add(file, STUDY, study.to_json().encode())
        for record in records:
            _add(file, f"{folder_name(record.id)}/{RECORD_FILE}", record.to_json().encode())
        for piece, content in pieces.items():
            _add(file, piece.member, content)
    return buffer.getvalue()


def _named(artifact: ArtifactId) -> dict[str, str]:
    return {"stage": artifact.stage, "slug": artifact.slug, "fingerprint": artifact.fingerprint}


def _add(file: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, EPOCH)
    member.external_attr = 0o644 << 16
    smaller = packed_size(content) < len(content)
    file.writestr(member, content, zipfile.ZIP_DEFLATED if smaller else zipfile.ZIP_STORED, LEVEL)


def read_part(path: Path) -> Part:
    """A part, every byte of which is as its header says.

    Raises UserError for a file that is no part of a bundle or one of another version, DamagedError for a part that is damaged.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the files in it that `blindsweep bundle` wrote, such as {path}/*.zip")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the files that `blindsweep bundle` wrote")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no part of a bundle, or is cut off; give the files that `blindsweep bundle` wrote, whole")
    try:
        with zipfile.ZipFile(path) as file:
            if not {HEADER, STUDY} & set(file.namelist()):
                raise NoPartError(
                    f"{path} is another zip file and no part of a bundle; give those that `blindsweep bundle` wrote"
                )
            values = unseal(file.read(HEADER))
            if values["format"] != FORMAT:
                raise NoPartError(
                    f"{path} has format {values['format']!r} of bundles, and this version of blindsweep reads {FORMAT}: merge "
                    "it by the version that wrote it, or write it anew with this one"
                )
            study = Study.from_json(file.read(STUDY), f"{path}/{STUDY}")
            records = {}
            for named in values["artifacts"]:
                artifact = _artifact(named)
                where = f"{folder_name(artifact)}/{RECORD_FILE}"
                record = Record.from_json(file.read(where), f"{path}/{where}")
                if record.id != artifact:
                    raise ValueError(f"{where} is the record of {record.id.name}")
                records[artifact.fingerprint] = record
            pieces = tuple(_piece(named) for named in values["pieces"])
            for piece in pieces:
                _check(piece, file.read(piece.member), records[piece.artifact.fingerprint])
            return Part(path, study, records, pieces)
    except NoPartError:
        raise
    except UNREADABLE as error:
        raise DamagedError(f"{path} is damaged ({error}); copy it again, or write the bundle anew") from error


def _artifact(named: Mapping[str, Any]) -> ArtifactId:
    return ArtifactId(named["stage"], named["slug"], named["fingerprint"])


def _piece(named: Mapping[str, Any]) -> Piece:
    return Piece(_artifact(named), str(named["path"]), int(named["offset"]), int(named["num_bytes"]), str(named["sha256"]))


def _check(piece: Piece, content: bytes, record: Record) -> None:
    size = bundled_files(record).get(piece.path)
    if not is_inside(piece.path) or size is None or not 0 <= piece.offset <= piece.offset + piece.num_bytes <= size:
        raise ValueError(f"{piece.member} is no piece of a file of its artifact")
    if len(content) != piece.num_bytes or hashlib.sha256(content).hexdigest() != piece.sha256:
        raise ValueError(f"{piece.member} is not what the header says")
