"""Of what an artifact was built, and under which licences that is: sections of a card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.cards.card import plain, table
from analysis.cards.licences import UNKNOWN, UNKNOWN_LICENCE, Licence, Source
from sweep.graph.identity import SHORT
from sweep.graph.records import Record

PAPER = (
    "Lingze Zhang and Ellie Pavlick. *Does Training on Synthetic Data Make Models Less Robust?* Brown University. The study "
    "that the project implements"
)


@dataclass(frozen=True)
class Base:
    """A base model: its repository on the hub and commit, "" where it is of a folder or made in the study; its licence."""

    hub_name: str = ""
    commit: str = ""
    licence: Licence = UNKNOWN_LICENCE
    made_here: bool = False
    quantized: str = ""


@dataclass(frozen=True)
class Lineage:
    """What an artifact was built from: its ancestors' records, itself first, the base models and the sources among them."""

    records: tuple[Record, ...]
    bases: tuple[Base, ...] = ()
    sources: tuple[Source, ...] = ()
    language: str = ""
    """An ISO 639 code, or "" where it is not known."""

    @property
    def marks(self) -> tuple[str, ...]:
        """In what the artifact is not the real thing, or what is to be known of its data."""
        return self.records[0].marks

    @property
    def is_rehearsal(self) -> bool:
        """Whether it is a stand-in of what its name promises; other marks are of its data."""
        return "rehearsal" in self.marks

    @property
    def base_names(self) -> list[str]:
        return sorted({base.hub_name for base in self.bases if base.hub_name})

    @property
    def source_names(self) -> list[str]:
        return sorted({source.hub_name for source in self.sources if source.hub_name and not source.is_test})


def model_licence(lineage: Lineage, given: str) -> str:
    """The hub's identifier of a model's licence: its base's where that binds what is made of it, or the user's, or unknown."""
    bound = next((base.licence.hub_id for base in lineage.bases if base.licence.binds_models), "")
    return bound or given or UNKNOWN


def restrictions(lineage: Lineage) -> list[str]:
    """A line for each licence of what it was made from that restricts passing it on, or is not known."""
    return [
        f"{name}: {'its licence is unknown' if licence.restricts is None else licence.name}"
        for name, licence in _licences(lineage)
        if licence.restricts is not False
    ]


def licence_section(lineage: Lineage, hub_id: str, given: str) -> str:
    """What the licence is, and what those of base and sources ask."""
    if hub_id == UNKNOWN:
        lines = ["Its licence is not stated (`unknown`): whoever publishes it has to decide, within what follows."]
    elif hub_id == given:
        lines = [f"`{hub_id}`, as whoever published it says. What it was made from has licences of its own:"]
    else:
        lines = [f"`{hub_id}`, which is its base model's and binds what is made from it."]
    rows = [(name, licence.name, _terms(licence)) for name, licence in _licences(lineage)]
    return "\n\n".join([*lines, table(("made from", "licence", "asks of whoever passes it on"), rows)])


def _terms(licence: Licence) -> str:
    return licence.terms or ("unknown" if licence.restricts is None else "–")


def _licences(lineage: Lineage) -> Iterator[tuple[str, Licence]]:
    for base in dict.fromkeys(lineage.bases):
        if not base.made_here:
            yield base.hub_name or "the base model, from a folder", base.licence
    for source in lineage.sources:
        if not source.is_test:
            yield source.name, source.licence


def base_lines(bases: Iterable[Base]) -> list[str]:
    """A sentence on each base model."""
    lines = []
    for base in dict.fromkeys(bases):
        if base.made_here:
            line = "The base model was made in the study itself, a small Llama from scratch."
        elif base.hub_name:
            line = f"The base model is [{base.hub_name}](https://huggingface.co/{base.hub_name}) at commit `{base.commit}`."
        else:
            line = "The base model is of a folder of the user's; its name on the hub, if it has one, is unknown."
        if base.quantized:
            bits = 8 if base.quantized == "fp8" else 4
            line += f" Its projections have the values of their {bits}-bit form ({base.quantized})."
            if bits == 8:
                line += " What meets them was cast to 8 bits as well, and is not where these files are used."
        lines.append(line)
    return lines


def lineage_section(lineage: Lineage) -> str:
    """The artifacts that it was built from, itself first, with fingerprints; base models; sources."""
    rows = [
        (record.stage, record.slug, f"`{record.fingerprint[:SHORT]}`", record.created[:10] or "unknown", _code(record))
        for record in lineage.records
    ]
    sources = [
        f"- {source.name}{', to test on' * source.is_test}" + (f" ({source.where})" if source.where else "")
        for source in lineage.sources
    ]
    parts = [*base_lines(lineage.bases), table(("stage", "artifact", "fingerprint", "built", "code"), rows)]
    return "\n\n".join([*parts, "Data from outside:\n\n" + "\n".join(sources)] if sources else parts)


def _code(record: Record) -> str:
    commit = str(record.git.get("commit") or "unknown")[:SHORT]
    return f"{commit}, with changes" if record.git.get("dirty") else commit


def settings_lines(record: Record, names: Mapping[str, str]) -> Sequence[str]:
    """`- <title>: <value>` for each of the record's config values that `names` has a title for and that is there."""
    config = record.payload.get("config", {})
    return [f"- {title}: {plain(config[name])}" for name, title in names.items() if config.get(name) not in (None, "")]


def marks_note(lineage: Lineage) -> str:
    """A quotation of the marks, or ""."""
    promise = " It is not what its name promises." if lineage.is_rehearsal else ""
    return f"> **{'; '.join(map(plain, lineage.marks))}.**{promise}" if lineage.marks else ""
