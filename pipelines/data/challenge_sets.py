"""Challenge sets for models trained on MultiNLI: what each tests, where its files are from, and how they are read.

    folder = challenge_folder("data")                        # data/challenge
    files = challenge_files(folder, "med")                   # MED.tsv, by its content
    read = read_challenge(folder, "med", development={})     # rows, and those that do not fit, each with its reason

A set's published files lie in ``challenge/<name>/``, under their published names. HANS is not among them: it belongs to every
study on MultiNLI (:mod:`pipelines.data.sources`). docs/challenges.md says why each half is where going by the heuristic is
right or wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.data.challenge_readers import ENTAILMENT, Development, Read, read_med, read_mnli_hard, read_neg_nli, read_scone
from pipelines.errors import UserError
from pipelines.identity import UNKNOWN, FileHash, sha256_of
from pipelines.tasks.nli import Label
from pipelines.tasks.test_sets import TestSet

CHALLENGE_FOLDER = "challenge"
ALWAYS_THERE = "hans"
"""The name under which HANS may be asked for: it is part of the sources as it is."""


@dataclass(frozen=True)
class PublishedFile:
    """A file at its publisher's address, by its content. `path` is its place in the set's folder."""

    path: str
    url: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class ChallengeFiles:
    """A challenge set by its files' content: its part of the identity of a study's data."""

    name: str
    files: tuple[FileHash, ...]


@dataclass(frozen=True)
class ChallengeSet:
    """A set, its published files, the number of rows in them, and its reader, which takes their paths by name."""

    test_set: TestSet
    num_rows: int
    files: tuple[PublishedFile, ...]
    read: Callable[[Mapping[str, Path], Development], Read]
    made_of: tuple[str, ...] = ()
    """Sets all of whose rows it holds; its reader takes them from the development files."""


def challenge_sets(names: Sequence[str]) -> tuple[ChallengeSet, ...]:
    """The sets of these names, in their order; ``hans`` may be among them and adds nothing.

    Raises :class:`UserError` for an unknown name and for one that is given twice.
    """
    valid = (ALWAYS_THERE, *CHALLENGE_SETS)
    if unknown := [name for name in names if name not in valid]:
        raise UserError(f"challenges={','.join(unknown)}: there is no such challenge set; valid: {', '.join(valid)}")
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        raise UserError(f"challenges={','.join(names)} names {', '.join(repeated)} twice; name each once")
    return tuple(CHALLENGE_SETS[name] for name in names if name != ALWAYS_THERE)


def challenge_folder(folder: str | Path) -> Path:
    """Where a folder of the raw data has the challenge sets."""
    return Path(folder).expanduser() / CHALLENGE_FOLDER


def missing_challenge_files(folder: str | Path, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the sets' files that a folder of the raw data lacks, as places in it."""
    return tuple(
        f"{CHALLENGE_FOLDER}/{one.test_set.name}/{file.path}"
        for one in challenge_sets(names)
        for file in one.files
        if not (challenge_folder(folder) / one.test_set.name / file.path).is_file()
    )


def challenge_files(folder: str | Path, name: str) -> ChallengeFiles:
    """A set by its files' content. Raises :class:`UserError` for a file that is missing."""
    if missing := missing_challenge_files(folder, [name]):
        raise UserError(
            f"challenges has {name}, and data folder {str(folder)!r} has no {missing[0]}"
            f"{f' nor {len(missing) - 1} more of its files' if len(missing) > 1 else ''}; get it with `blindsweep data fetch "
            f"--challenges {name} --to {folder}`, or from a copy of {CHALLENGE_SETS[name].files[0].url} with --from FOLDER, or "
            "leave it out"
        )
    paths = _paths(folder, name)
    return ChallengeFiles(name, tuple(FileHash(file, sha256_of(path)) for file, path in paths.items()))


def unknown_challenge_files(name: str) -> ChallengeFiles:
    """A set whose files are not here, for what can be planned and not yet built."""
    return ChallengeFiles(name, tuple(FileHash(file.path, UNKNOWN) for file in CHALLENGE_SETS[name].files))


def read_challenge(folder: str | Path, name: str, development: Development) -> Read:
    """The set's rows, in the order of its files.

    Raises :class:`UserError`, naming file and line, for a file that is not what its name says, for flags that do not match
    the development files, and where no row is left.
    """
    read = CHALLENGE_SETS[name].read(_paths(folder, name), development)
    if not read.rows:
        raise UserError(
            f"challenge set {name}: none of the {len(read.dropped):,} rows in {challenge_folder(folder) / name} fits; "
            "get the published files"
        )
    for row in read.dropped:
        row["set"] = name
    return read


def is_published(files: ChallengeFiles) -> bool:
    """Whether these are the published files, to the byte."""
    return [(file.path, file.sha256) for file in CHALLENGE_SETS[files.name].files] == [
        (file.name, file.sha256) for file in files.files
    ]


def _paths(folder: str | Path, name: str) -> dict[str, Path]:
    return {file.path: challenge_folder(folder) / name / file.path for file in CHALLENGE_SETS[name].files}


def _published(base: str, files: Mapping[str, tuple[str, int]]) -> tuple[PublishedFile, ...]:
    return tuple(PublishedFile(path, f"{base}/{path}", sha256, size) for path, (sha256, size) in files.items())


RAW = "https://raw.githubusercontent.com"

CHALLENGE_SETS: dict[str, ChallengeSet] = {
    one.test_set.name: one
    for one in (
        ChallengeSet(
            TestSet(
                name="mnli_hard",
                slices=("hardness", "part"),
                aligned="hardness/easy",
                adversarial="hardness/hard",
                title="MNLI-hard",
                tests="Going by the hypothesis alone; wrong on hard pairs, which such a classifier got wrong.",
                licence="MIT (the flags); MultiNLI's own licences for its pairs",
                source="Gururangan et al. 2018, aclanthology.org/N18-2017; flags: m43/focal-loss-against-heuristics",
            ),
            19_647,
            _published(
                f"{RAW}/m43/focal-loss-against-heuristics/f0c3623d0e7c38f79faf806c293595fddcb0e89c/data",
                {
                    "mnli_validation_matched_hardness.csv": (
                        "3b3ae3c69df92ac6b2394be7035d0c8d3046a3feba164dabb7c620d947e6167a",
                        138_703,
                    ),
                    "mnli_validation_mismatched_hardness.csv": (
                        "9ebe1e73837a5ea373e24f38c6e2cb49a2f207a9feb6ac4801165512f668fcf1",
                        138_888,
                    ),
                },
            ),
            read_mnli_hard,
            made_of=("mnli_matched", "mnli_mismatched"),
        ),
        ChallengeSet(
            TestSet(
                name="med",
                folded_onto=ENTAILMENT,
                slices=("monotonicity", "collected"),
                cluster="cluster",
                aligned="monotonicity/upward",
                adversarial="monotonicity/downward",
                title="MED",
                tests="That a hypothesis made more general follows, and one made more specific does not; wrong in downward "
                "monotone contexts.",
                licence="CC BY-SA 4.0",
                source="Yanaka et al. 2019, aclanthology.org/W19-4804; verypluming/MED",
            ),
            5_382,
            _published(
                f"{RAW}/verypluming/MED/master",
                {"MED.tsv": ("644d4ffc16fffabb42ab3b7b087074794cefe4c434c7f852b998f209f295d74a", 781_933)},
            ),
            read_med,
        ),
        ChallengeSet(
            TestSet(
                name="scone",
                folded_onto=ENTAILMENT,
                slices=("negation", "half"),
                cluster="cluster",
                aligned="half/aligned",
                adversarial="half/adversarial",
                title="ScoNe",
                tests="Leaving negations out of account; wrong where one scopes over the word that differs, and none over it.",
                licence="CC0 1.0",
                source="She et al. 2023, aclanthology.org/2023.acl-short.154; selenashe/ScoNe",
            ),
            7_212,
            _published(
                f"{RAW}/selenashe/ScoNe/main/scone_nli",
                {
                    "train/no_negation.csv": ("7eace991e9054b491918c176f5f038c7fed6eb0ac529a0ff0c7b713397a0672c", 201_030),
                    "train/one_not_scoped.csv": ("f80d23ada21d3a8f2e04fd436774c92f8918ba73bf1f9183d3912f17648149e4", 247_206),
                    "train/one_scoped.csv": ("1a9f0b3e931fe15d20fee63eb5e94a8b7d58cc195839ba4616d363f11c5d55b7", 114_784),
                    "train/one_scoped_one_not_scoped.csv": (
                        "51f4a4cd92695593bfb6a7788e08df620b637bda129037654c2130b20c7d871a",
                        238_122,
                    ),
                    "train/two_not_scoped.csv": ("88003396a41b5aeb0cbc47edaa73dc9581ba0fe7542d3572d1ba8c57dd3bed3e", 284_468),
                    "train/two_scoped.csv": ("f394dfb47d5a487e0619d351df37978f56a0a61dae6dc72b8830900c19b78968", 262_242),
                    "test/no_negation.csv": ("4027aa515f9225da7a3d598a3dff5b82d224850eaf0c28eea30e40eb3759963d", 43_399),
                    "test/one_not_scoped.csv": ("7177ff1e8c86eed3c7d2e1b622add7d16e318a303f2e99393918f9bfd7336e43", 53_739),
                    "test/one_scoped.csv": ("58d18c16f62c693c450e817aa5d291e83f92527e1aab823c466132a4f7ac22f6", 24_425),
                    "test/one_scoped_one_not_scoped.csv": (
                        "b76269f6bc1b6d4a5928647bb13a571b5f24a4b3adaccebadee4363f9cea0105",
                        52_924,
                    ),
                    "test/two_not_scoped.csv": ("46d347ced6e3a7428a13b70f24380ef7a57846327d862bc238955c8bc4d07ef2", 57_887),
                    "test/two_scoped.csv": ("797f8ce23b3d7366352a399b855b8668c8e69154055bbd0547b3f1c82d7ef0ef", 55_679),
                },
            ),
            read_scone,
        ),
        ChallengeSet(
            TestSet(
                name="neg_nli",
                slices=("negated", "half"),
                cluster="cluster",
                aligned="half/aligned",
                adversarial="half/adversarial",
                predicts=Label.CONTRADICTION.value,
                title="NegNLI",
                tests="That a negated hypothesis is a contradiction; wrong where it is negated and follows, or may.",
                licence="MIT",
                source="Hossain et al. 2020, aclanthology.org/2020.emnlp-main.732; mosharafhossain/negation-and-nli",
            ),
            1_500,
            _published(
                f"{RAW}/mosharafhossain/negation-and-nli/209d1b587517fcca144e15ad5cc3ee48ae113ef5/data/new_benchmarks/clean_data",
                {"MNLI.txt": ("eaf31305308483a00bf6f915baa78cfe63c1fd6b4f27dc3cca3f5fb48ae2b57e", 239_931)},
            ),
            read_neg_nli,
        ),
    )
}
"""By name, in the order of the papers."""
