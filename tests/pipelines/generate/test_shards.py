"""Shards without Ray or vLLM: what they are, which are needed, how one is committed."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.generate.shards import (
    Commit,
    Decision,
    Shard,
    ShardFolder,
    decide,
    derive_seed,
    is_hopeless,
    kept_shards,
    plan_shards,
)
from pipelines.tasks.nli import LABELS

E, N, C = LABELS


def commit_of(label: str, index: int, num_parsed: int, count: int = 100) -> Commit:
    return Commit(label, index, 7, count, "request", num_parsed, {"no_premise": count - num_parsed}, 1_000)


def commits_of(*commits: Commit) -> dict[tuple[str, int], Commit]:
    return {(commit.label, commit.index): commit for commit in commits}


def test_labels_take_turns_and_get_as_many_shards_as_the_least_yield_needs() -> None:
    shards = plan_shards({E: 100, N: 250, C: 100}, shard_size=100, min_yield=0.5, seed=0)
    assert [(shard.label, shard.index) for shard in shards] == [
        (E, 0), (N, 0), (C, 0), (E, 1), (N, 1), (C, 1), (N, 2), (N, 3), (N, 4),
    ]  # fmt: skip
    assert {shard.count for shard in shards} == {100}


def test_no_two_rows_share_a_seed_and_seeds_follow_from_their_names() -> None:
    shards = plan_shards(dict.fromkeys(LABELS, 1_000), shard_size=100, min_yield=0.5, seed=3)
    seeds = [shard.row_seed(row) for shard in shards for row in range(shard.count)]
    assert len(set(seeds)) == len(seeds) == 6_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert plan_shards(dict.fromkeys(LABELS, 1_000), shard_size=100, min_yield=0.5, seed=3) == shards
    other = plan_shards(dict.fromkeys(LABELS, 1_000), shard_size=100, min_yield=0.5, seed=4)
    assert not {shard.seed for shard in other} & {shard.seed for shard in shards}


def test_seeds_are_those_that_pools_were_written_with() -> None:
    # The first 8 bytes of SHA-256("0/entailment/0") without their lowest bit; a change makes old pools
    # irreproducible.
    assert derive_seed(0, E, 0) == 0x7B60267B2B5E71AA
    assert Shard(N, 12, 5, 100).name == "neutral-00012"
    assert Shard(N, 12, 5, 100).row_id(34) == "neutral-00012-00034"


@pytest.mark.parametrize("label", ["not at all", "5.5 stars", "état", "a-00001"])
def test_a_label_of_any_task_names_files_that_are_found_again(output: str, label: str) -> None:
    shards = [Shard("a", 1, 1, 2), Shard(label, 0, 1, 2), Shard(label, 12, 1, 2)]
    for shard in shards:
        ShardFolder(output).commit(shard, "request", *tables(1, ["no_text"]), num_tokens=1)
    folder = ShardFolder(output)
    assert folder.drop_damaged() == []
    assert set(folder.commits()) == {("a", 1), (label, 0), (label, 12)}
    assert folder.read_table(f"pool/{label}-00012.parquet").num_rows == 1
    folder.remove_uncommitted()
    folder.withdraw(shards[2])
    assert set(ShardFolder(output).commits()) == {("a", 1), (label, 0)}
    assert len({shard.row_id(row) for shard in shards for row in range(2)}) == 6


@pytest.mark.parametrize(
    ("index", "commits", "expected"),
    [
        (0, [], Decision.GENERATE),
        # Nothing is known: two shards under way may all parse, and 200 of 250 are not enough, 300 are.
        (2, [], Decision.GENERATE),
        (3, [], Decision.WAIT),
        # At a yield of a half, two under way bring 100 more to the 50 there are.
        (3, [(0, 50)], Decision.GENERATE),
        # 240 + one under way at 0.8: between 72 and 80 come, and 10 are lacking.
        (4, [(0, 80), (1, 80), (2, 80)], Decision.WAIT),
        # 84 should come and 82 are lacking: too close to be counted on.
        (3, [(0, 90), (1, 78)], Decision.GENERATE),
        (3, [(0, 90), (1, 80), (2, 80)], Decision.SKIP),
        # Later shards do not make an earlier one unneeded: the pool has no holes.
        (1, [(0, 90), (2, 90), (3, 90), (4, 90)], Decision.GENERATE),
        # Of 100 texts 20 should parse; none did.
        (1, [(0, 0)], Decision.SKIP),
        (1, [(0, 15)], Decision.GENERATE),
    ],
)
def test_a_shard_is_generated_only_if_those_before_it_do_not_suffice(
    index: int, commits: list[tuple[int, int]], expected: Decision
) -> None:
    known = commits_of(*(commit_of(N, i, num_parsed) for i, num_parsed in commits), commit_of(E, 0, 100))
    assert decide(Shard(N, index, 7, 100), known, target=250, min_yield=0.2) is expected


def test_a_low_yield_is_hopeless_only_beyond_chance() -> None:
    assert not is_hopeless([], 0.2)
    assert not is_hopeless([commit_of(E, 0, 9)], 0.2)
    assert is_hopeless([commit_of(E, 0, 7)], 0.2)
    assert is_hopeless([commit_of(E, i, 15) for i in range(10)], 0.2)


def test_the_pool_ends_with_the_first_shard_that_reaches_the_number_whatever_else_is_committed() -> None:
    needed = [
        commit_of(E, 0, 60),
        commit_of(E, 1, 40),
        commit_of(N, 0, 99),
        commit_of(N, 1, 1),
        commit_of(C, 0, 100),
    ]
    surplus = [commit_of(E, 2, 90), commit_of(C, 1, 90)]
    kept = kept_shards(commits_of(*surplus, *reversed(needed)), dict.fromkeys(LABELS, 100))
    assert [commit for label in (E, N, C) for commit in kept[label]] == needed


def test_the_pool_stops_at_a_missing_shard() -> None:
    kept = kept_shards(commits_of(commit_of(E, 0, 60), commit_of(E, 2, 60)), {E: 100})
    assert [commit.index for commit in kept[E]] == [0]


def tables(num_parsed: int, reasons: list[str]) -> tuple[pa.Table, pa.Table]:
    return pa.table({"id": [str(i) for i in range(num_parsed)]}), pa.table({"reason": pa.array(reasons, pa.string())})


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('bucket')}/out"


def test_a_commit_is_read_by_others_with_its_counts(output: str) -> None:
    writer, reader = ShardFolder(output), ShardFolder(output)
    assert reader.commits() == {}
    shard = Shard(N, 3, 99, 5)
    writer.commit(shard, "request", *tables(2, ["no_premise", "no_hypothesis", "no_premise"]), num_tokens=77)
    commit = reader.commits()[N, 3]
    assert commit.shard == shard
    assert (commit.num_parsed, commit.num_tokens) == (2, 77)
    assert commit.rejected == {"no_hypothesis": 1, "no_premise": 2}
    assert set(commit.files) == {"pool/neutral-00003.parquet", "rejects/neutral-00003.parquet"}
    assert reader.read_table("pool/neutral-00003.parquet").num_rows == 2


def test_a_shard_is_committed_once(output: str) -> None:
    shard = Shard(E, 0, 1, 5)
    first = ShardFolder(output).commit(shard, "request", *tables(5, []), num_tokens=1)
    again = ShardFolder(output).commit(shard, "request", *tables(1, ["no_premise"] * 4), num_tokens=2)
    assert again == first
    assert ShardFolder(output).read_table("pool/entailment-00000.parquet").num_rows == 5


def test_damaged_shards_are_withdrawn_and_whole_ones_kept(output: str) -> None:
    folder = ShardFolder(output)
    shards = [Shard(E, index, 1, 5) for index in range(4)]
    for shard in shards:
        folder.commit(shard, "request", *tables(5, []), num_tokens=1)
    folder.write(shards[1].files[0], b"cut off")
    folder.withdraw(shards[2])
    assert folder.drop_damaged() == ["entailment-00001"]
    assert set(ShardFolder(output).commits()) == {(E, 0), (E, 3)}


def test_same_size_damage_is_found_on_this_machine(tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path))
    folder.commit(Shard(E, 0, 1, 5), "request", *tables(5, []), num_tokens=1)
    path = tmp_path / "pool/entailment-00000.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert folder.drop_damaged() == ["entailment-00000"]


def test_files_of_uncommitted_shards_are_removed(output: str) -> None:
    folder = ShardFolder(output)
    folder.commit(Shard(E, 0, 1, 5), "request", *tables(5, []), num_tokens=1)
    folder.write("pool/entailment-00001.parquet", b"written, then the worker died")
    folder.remove_uncommitted()
    assert folder.read_table("pool/entailment-00000.parquet").num_rows == 5
    with pytest.raises(FileNotFoundError):
        folder.read_table("pool/entailment-00001.parquet")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    folder = ShardFolder(str(tmp_path))
    with pytest.raises(OSError, match="No space"):
        folder.commit(Shard(E, 0, 1, 5), "request", *tables(5, []), num_tokens=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert folder.commits() == {}


def test_what_is_set_aside_is_beside_the_pool_and_goes_with_its_shard(tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path))
    shard = Shard(E, 0, 7, 5)
    parsed = pa.table({"id": ["a", "b", "c"]})
    commit = folder.commit(shard, "request", parsed, pa.table({"reason": ["no_premise", "no_premise"]}), 50)
    folder.set_aside(commit, 1)
    for reader in (folder, ShardFolder(str(tmp_path))):
        cut = reader.commits()[E, 0]
        assert (cut.num_parsed, cut.num_surplus) == (3, 1)
        assert reader.read_table(shard.files[0])["id"].to_pylist() == ["a", "b"]
        assert reader.read_table(shard.surplus_file)["id"].to_pylist() == ["c"]
        assert reader.drop_damaged() == []
        reader.set_aside(cut, 1)
    (tmp_path / shard.surplus_file).unlink()
    assert folder.drop_damaged() == [shard.name]
    assert not list((tmp_path / "pool").iterdir())


def test_a_shard_cut_half_way_is_generated_again(tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path))
    commit = folder.commit(
        Shard(E, 0, 7, 2), "request", pa.table({"id": ["a", "b"]}), pa.table({"reason": pa.array([], pa.string())}), 50
    )
    written = (tmp_path / "shards" / f"{commit.shard.name}.json").read_bytes()
    folder.set_aside(commit, 1)
    (tmp_path / "shards" / f"{commit.shard.name}.json").write_bytes(written)
    assert ShardFolder(str(tmp_path)).drop_damaged() == [commit.shard.name]
    assert not (tmp_path / commit.shard.surplus_file).exists()


@pytest.mark.parametrize("damage", ["cut", "a folder", "another count", "another shard's", "a folder for its examples"])
def test_a_shard_whose_commit_is_damaged_is_generated_again(tmp_path: Path, damage: str) -> None:
    folder = ShardFolder(str(tmp_path))
    shard, other = Shard(E, 0, 7, 2), Shard(E, 1, 8, 2)
    for one in (shard, other):
        folder.commit(one, "request", *tables(2, []), num_tokens=1)
    commit, examples = tmp_path / "shards" / f"{shard.name}.json", tmp_path / shard.files[0]
    match damage:
        case "cut":
            commit.write_bytes(commit.read_bytes()[:50])
        case "a folder":
            commit.unlink()
            commit.mkdir()
        case "another count":
            commit.write_text(commit.read_text().replace('"num_parsed": 2', '"num_parsed": 3'))
        case "another shard's":
            commit.write_bytes((tmp_path / "shards" / f"{other.name}.json").read_bytes())
        case "a folder for its examples":
            examples.unlink()
            examples.mkdir()
    again = ShardFolder(str(tmp_path))
    assert again.drop_damaged() == [shard.name]
    assert set(again.commits()) == {(E, 1)}
    again.remove_uncommitted()
    again.commit(shard, "request", *tables(2, []), num_tokens=1)
    assert ShardFolder(str(tmp_path)).drop_damaged() == [] and set(again.commits()) == {(E, 0), (E, 1)}
