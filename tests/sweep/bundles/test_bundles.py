"""A study taken apart and put together: what comes back, what is refused, and what is never written."""

import dataclasses
import hashlib
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.errors import DamagedError, UserError
from pipelines.storage import filesystem, join
from sweep import cli
from sweep.bundles.bundle import write_bundle
from sweep.bundles.merge import ConflictError, merge_bundles
from sweep.bundles.part import part_bytes, read_part
from sweep.graph.pieces import parse_only, piece_of
from sweep.graph.records import RECORD_FILE, Record, Store, Study
from sweep.live.lease import lease
from sweep.plan.plan import make_plan
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded

Build = Callable[..., Store]
MIB = 2**20


def contents(store: Store) -> dict[str, str]:
    """Path below the store → sha256, of all that is no weights and no lock."""
    file_system, root = filesystem(store.uri)
    return {
        path.removeprefix(root): hashlib.sha256(file_system.cat_file(path)).hexdigest()
        for path in file_system.find(root)
        if not path.endswith((".safetensors", ".lock", ".lease"))
    }


def test_a_bundle_brings_back_all_but_weights(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    store, other = build("here"), Store(tmp_path / "there")
    written = write_bundle(store, "small", tmp_path / "small.zip", part_size=MIB)
    assert written.parts == (tmp_path / "small.zip",)
    merged = merge_bundles(other, written.parts)
    num = len(build_grid(two_seeds))
    assert (merged.num_new, merged.num_there, merged.unfinished) == (num, 0, ())
    assert contents(other) == contents(store)
    assert Study.load(other, "small").num_built == num
    assert all(planned.is_cached for planned in make_plan(build_grid(two_seeds), other))


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_parts_come_in_any_order_and_files_larger_than_one_are_put_together(
    where: str, build: Build, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = build("here", size=120_000)
    written = write_bundle(store, "small", tmp_path / "small.zip", part_size=100_000)
    assert len(written.parts) > 10
    assert all(part.stat().st_size <= 100_000 for part in written.parts)
    assert written.parts[1] == tmp_path / "small-002.zip"
    other = Store(tmp_path / "there" if where == "local" else request.getfixturevalue("bucket"))
    parts = random.Random(0).sample(written.parts, len(written.parts))
    some = merge_bundles(other, parts[:5])
    assert some.unfinished
    assert Study.load(other, "small").num_built == some.num_new
    # The fifth once more, too.
    assert merge_bundles(other, parts[4:]).unfinished == ()
    assert contents(other) == contents(store)


def test_parts_of_two_bundles_that_are_cut_in_other_places_make_one_file(build: Build, tmp_path: Path) -> None:
    store = build("here", size=120_000)
    one, two = (write_bundle(store, "small", tmp_path / f"{size}.zip", part_size=size).parts for size in (100_000, 75_000))
    for order in ([one[:7], two], [two[:9], one], [[*one[::2], *two[::2]], [*one[1::2], *two[1::2]]]):
        other = Store(tmp_path / f"there-{len(list(tmp_path.iterdir()))}")
        assert merge_bundles(other, order[0]).unfinished
        assert merge_bundles(other, order[1]).unfinished == ()
        assert contents(other) == contents(store)


def test_a_bundle_that_was_cut_off_goes_on_and_a_file_of_another_stays(build: Build, tmp_path: Path) -> None:
    store = build("here", size=120_000)
    parts = write_bundle(store, "small", tmp_path / "small.zip", part_size=100_000).parts
    whole = [part.read_bytes() for part in parts]
    parts[2].unlink()
    parts[-1].write_bytes(b"another")
    with pytest.raises(UserError, match=rf"{parts[-1].name} is there already, with other content; remove it, or"):
        write_bundle(store, "small", tmp_path / "small.zip", part_size=100_000)
    assert not parts[2].exists() and parts[-1].read_bytes() == b"another"
    parts[-1].unlink()
    # As after a full disk, whose error says that the same command goes on.
    assert write_bundle(store, "small", tmp_path / "small.zip", part_size=100_000).parts == parts
    assert [part.read_bytes() for part in parts] == whole


def test_pieces_built_apart_make_one_study(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    grid = build_grid(two_seeds)
    parts = []
    for seed in (0, 1):
        piece = {step.fingerprint for step in piece_of(grid, parse_only(f"seed={seed}"))}
        store = build(f"piece{seed}", piece, salt=f" of machine {seed}")
        parts += write_bundle(store, "small", tmp_path / f"{seed}.zip", part_size=MIB).parts
    together = Store(tmp_path / "together")
    merged = merge_bundles(together, parts)
    assert (merged.num_new, merged.unfinished) == (len(grid), ())
    assert all(planned.is_cached for planned in make_plan(grid, together))


@pytest.fixture
def half_built(build: Build, two_seeds: Experiment) -> Store:
    """Seed 0 is whole; of seed 1 a generator and its pool are there."""
    grid = build_grid(two_seeds)
    begun = ("generator/generator1", "synthetic_pool/pool1")
    of_seed = {step.fingerprint for step in piece_of(grid, parse_only("seed=0"))}
    return build("here", of_seed | {step.fingerprint for step in grid if step.name in begun})


def test_a_bundle_of_a_study_under_way_has_the_seeds_that_are_whole_and_a_later_one_merges_onto_it(
    build: Build, half_built: Store, two_seeds: Experiment, tmp_path: Path
) -> None:
    grid = build_grid(two_seeds)
    seed_0 = {step.fingerprint for step in piece_of(grid, parse_only("seed=0"))}
    early = write_bundle(half_built, "small", tmp_path / "early.zip", part_size=MIB, only="whole")
    assert str(early.only) == "seed=0" and (early.num_artifacts, early.left_out) == (len(seed_0), 0)
    together = Store(tmp_path / "together")
    merge_bundles(together, early.parts)
    study = Study.load(together, "small")
    assert {step.fingerprint for step in study.steps if step.record} == seed_0 and len(study.steps) == len(grid)
    # The run goes on, in its store.
    later = write_bundle(build("here"), "small", tmp_path / "later.zip", part_size=MIB, only="whole")
    assert str(later.only) == "seed=0,1"
    merged = merge_bundles(together, later.parts)
    assert (merged.num_new, merged.num_there) == (len(grid) - len(seed_0), len(seed_0))


def test_what_half_built_seeds_have_is_in_no_bundle_of_whole_ones_and_may_be_built_again_elsewhere(
    build: Build, half_built: Store, two_seeds: Experiment, tmp_path: Path
) -> None:
    early = {
        only: write_bundle(half_built, "small", tmp_path / f"{only}.zip", part_size=MIB, only=only) for only in (None, "whole")
    }
    seed_1 = {step.fingerprint for step in piece_of(build_grid(two_seeds), parse_only("seed=1"))}
    again = build("there", seed_1, salt=" of another machine")
    rest = write_bundle(again, "small", tmp_path / "rest.zip", part_size=MIB, only="seed=1")
    with pytest.raises(ConflictError, match="has other content"):
        merge_bundles(Store(tmp_path / "one"), [*early[None].parts, *rest.parts])
    merge_bundles(together := Store(tmp_path / "two"), [*early["whole"].parts, *rest.parts])
    assert all(planned.is_cached for planned in make_plan(build_grid(two_seeds), together))


def test_a_piece_is_bundled_as_far_as_it_is_built_and_where_no_seed_is_whole_that_is_said(
    build: Build, half_built: Store, two_seeds: Experiment, tmp_path: Path
) -> None:
    of_seed = piece_of(build_grid(two_seeds), parse_only("seed=1"))
    written = write_bundle(half_built, "small", tmp_path / "one.zip", part_size=MIB, only="seed=1")
    # Data and base model, generator and pool.
    assert written.num_artifacts == 4 and written.left_out == len(of_seed) - 4
    with pytest.raises(UserError, match="the study has no seed 7; its steps have 0, 1"):
        write_bundle(half_built, "small", tmp_path / "two.zip", part_size=MIB, only="seed=7")
    with pytest.raises(UserError, match=r"--only all: .*give seed=3,4, generator=1, shared or whole"):
        write_bundle(half_built, "small", tmp_path / "two.zip", part_size=MIB, only="all")
    less = build("less", {step.fingerprint for step in of_seed[:-2]})
    with pytest.raises(UserError, match=r"no seed of small is whole in .*less, and the nearest, seed 1, lacks 2 artifacts"):
        write_bundle(less, "small", tmp_path / "two.zip", part_size=MIB, only="whole")
    with pytest.raises(UserError, match="nothing of the piece seed=0 of small is built"):
        write_bundle(build("empty", ()), "small", tmp_path / "two.zip", part_size=MIB, only="seed=0")


def test_two_builds_of_one_artifact_are_refused_by_both_names(build: Build, tmp_path: Path) -> None:
    one, two = build("one", salt="a"), build("two", salt="b")
    write_bundle(one, "small", tmp_path / "one.zip", part_size=MIB)
    write_bundle(two, "small", tmp_path / "two.zip", part_size=MIB)
    together = Store(tmp_path / "together")
    with pytest.raises(ConflictError, match=r"has other content in .*two\.zip .* than in .*one\.zip"):
        merge_bundles(together, [tmp_path / "one.zip", tmp_path / "two.zip"])
    assert not Path(together.uri).exists()
    before = contents(one)
    with pytest.raises(ConflictError, match=rf"two\.zip .* than in {one.uri}"):
        merge_bundles(one, [tmp_path / "two.zip"])
    assert contents(one) == before


def test_what_was_built_from_another_build_is_refused(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    grid = build_grid(two_seeds)
    evaluation = next(step for step in grid if step.stage == "evaluation")
    one = build("one", {step.fingerprint for step in grid if step.stage != "evaluation"}, salt="a")
    two = build("two", salt="b")
    manifest = Study.listed(two, "small")
    part = write_bundle(two, "small", tmp_path / "two.zip", part_size=MIB).parts[0]
    read = read_part(part)
    # A part that holds an evaluation, and not the model that it is of.
    record = read.records[evaluation.fingerprint]
    own = {piece: read.content(piece) for piece in read.pieces if piece.artifact == record.id}
    part.write_bytes(part_bytes(manifest, [record], own))
    with pytest.raises(ConflictError, match=rf"{record.id.name} in .*two\.zip was built from another starting_point/"):
        merge_bundles(one, [part])
    assert not Path(one.folder(record.id), RECORD_FILE).exists()


def test_a_damaged_part_is_refused_or_has_lost_nothing(build: Build, tmp_path: Path) -> None:
    (part,) = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    whole, content = read_part(part), part.read_bytes()
    contents = {piece.member: whole.content(piece) for piece in whole.pieces}
    num_refused = 0
    # Anywhere, and of the first entry of the zip file's list all: method, sizes, place.
    listed = content.index(b"PK\x01\x02")
    for place in [*random.Random(0).sample(range(len(content)), 400), *range(listed, listed + 60)]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        part.write_bytes(damaged)
        try:
            read = read_part(part)
        except (DamagedError, UserError) as error:
            assert "small.zip" in str(error)
            num_refused += 1
        else:
            # A member's time or rights, which nothing reads.
            assert (read.records, read.study) == (whole.records, whole.study)
            assert {piece.member: read.content(piece) for piece in read.pieces} == contents
    assert num_refused > 300


def test_nothing_is_written_of_bundles_of_which_one_is_damaged(build: Build, tmp_path: Path) -> None:
    parts = write_bundle(build("here", size=120_000), "small", tmp_path / "small.zip", part_size=100_000).parts
    content = bytearray(parts[-1].read_bytes())
    content[len(content) // 3] ^= 0xFF
    parts[-1].write_bytes(content)
    with pytest.raises((DamagedError, UserError), match=parts[-1].name):
        merge_bundles(Store(tmp_path / "there"), parts)
    assert not (tmp_path / "there").exists()


def test_a_cut_off_part_or_another_file_is_refused(build: Build, tmp_path: Path) -> None:
    (part,) = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    part.write_bytes(part.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"small\.zip is no part of a bundle, or is cut off"):
        merge_bundles(Store(tmp_path / "there"), [part])
    with pytest.raises(UserError, match="there is no such file"):
        merge_bundles(Store(tmp_path / "there"), [tmp_path / "none.zip"])
    with pytest.raises(UserError, match=r"is a folder; give the files in it .*\*\.zip"):
        merge_bundles(Store(tmp_path / "there"), [tmp_path])
    with zipfile.ZipFile(part, "w") as file:
        file.writestr("notes.txt", "of something else")
    with pytest.raises(UserError, match=r"small\.zip is another zip file and no part of a bundle"):
        merge_bundles(Store(tmp_path / "there"), [part])


def test_an_artifact_whose_record_is_damaged_is_not_left_out_as_not_built(
    build: Build, two_seeds: Experiment, tmp_path: Path
) -> None:
    store = build("here")
    record = Path(store.folder(build_grid(two_seeds)[-1].id), RECORD_FILE)
    record.write_text("{")
    with pytest.raises(DamagedError, match=re.escape(f"{record} is not a readable record")):
        write_bundle(store, "small", tmp_path / "small.zip", part_size=MIB)
    assert not (tmp_path / "small.zip").exists()


def test_a_part_of_another_version_is_not_called_damaged(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("sweep.bundles.part.FORMAT", 2)
        (part,) = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    with pytest.raises(UserError, match=r"small\.zip has format 2 of bundles, and this version .* reads 1") as raised:
        merge_bundles(Store(tmp_path / "there"), [part])
    assert not isinstance(raised.value, DamagedError)


def test_a_longer_study_that_is_saved_while_parts_are_merged_stays(
    build: Build, two_seeds: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part,) = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    other = Store(tmp_path / "there")
    longer = dataclasses.replace(two_seeds, seeds=(0, 1, 2, 3))
    write_record = Store.write_record

    def with_another_merge(store: Store, record: Record) -> None:
        manifest(Loaded(longer, {}), build_grid(longer)).save(other)
        write_record(store, record)

    monkeypatch.setattr(Store, "write_record", with_another_merge)
    merge_bundles(other, [part])
    assert len(Study.load(other, "small").steps) == len(build_grid(longer)) > len(build_grid(two_seeds))


def test_a_study_of_the_same_name_with_other_steps_is_refused(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    parts = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    other = Store(tmp_path / "there")
    listed = Study.listed(build("more"), "small")
    dataclasses.replace(listed, steps=listed.steps[:-1]).save(other)
    with pytest.raises(ConflictError, match=r"is of a study small with \d+ steps"):
        merge_bundles(other, parts)


def test_pieces_of_a_study_that_has_more_seeds_since_make_the_larger_one(
    build: Build, two_seeds: Experiment, tmp_path: Path
) -> None:
    larger = dataclasses.replace(two_seeds, seeds=(0, 1, 2), generators=3)
    grid, parts = build_grid(larger), []
    for name, steps in (("two", build_grid(two_seeds)), ("three", grid)):
        store = build(name, {step.fingerprint for step in piece_of(build_grid(two_seeds), parse_only("seed=0"))})
        manifest(Loaded(two_seeds if name == "two" else larger, {}), steps).save(store)
        parts += write_bundle(store, "small", tmp_path / f"{name}.zip", part_size=MIB).parts
    for number, order in enumerate((parts, parts[::-1])):
        together = Store(tmp_path / f"together{number}")
        merge_bundles(together, order)
        study = Study.load(together, "small")
        assert [step.fingerprint for step in study.steps] == [step.fingerprint for step in grid]
        assert {step.coordinates.get("seed") for step in study.steps if step.record} == {0, None}


def test_why_a_piece_lacks_a_step_is_known_where_it_is_merged(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    grid, parts, failures = build_grid(two_seeds), [], []
    for seed in (0, 1):
        piece = piece_of(grid, parse_only(f"seed={seed}"))
        store = build(f"here{seed}", {step.fingerprint for step in piece[:-1]})
        failures.append({**dataclasses.asdict(piece[-1].id), "error": f"seed {seed} broke", "log": ""})
        dataclasses.replace(Study.listed(store, "small"), failures=(failures[-1],)).save(store)
        parts += write_bundle(store, "small", tmp_path / f"{seed}.zip", part_size=MIB).parts
    together = Store(tmp_path / "together")
    merge_bundles(together, parts[:1])
    merge_bundles(together, parts[1:])
    assert list(Study.load(together, "small").failures) == failures


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"plan": "b" * 64}, r"another plan than .*one\.zip: b{64} and a{64}"),
        ({"claims": []}, r"other claims than .*one\.zip; all"),
    ],
)
def test_pieces_that_were_built_under_another_plan_are_refused(
    build: Build, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    store = build("here")
    listed = Study.listed(store, "small")
    for name, parameters in (("one", {"plan": "a" * 64}), ("two", {"plan": "a" * 64} | changed)):
        dataclasses.replace(listed, parameters={**listed.parameters, **parameters}).save(store)
        write_bundle(store, "small", tmp_path / f"{name}.zip", part_size=MIB)
    with pytest.raises(ConflictError, match=words):
        merge_bundles(Store(tmp_path / "there"), [tmp_path / "one.zip", tmp_path / "two.zip"])
    assert not (tmp_path / "there").exists()


def test_parts_of_two_studies_of_one_name_are_refused_on_the_command_line(build: Build, tmp_path: Path) -> None:
    store = build("here")
    write_bundle(store, "small", tmp_path / "one.zip", part_size=MIB)
    listed = Study.listed(store, "small")
    dataclasses.replace(listed, steps=listed.steps[:-1]).save(store)
    write_bundle(store, "small", tmp_path / "two.zip", part_size=MIB)
    files = [str(tmp_path / "one.zip"), str(tmp_path / "two.zip")]
    said = CliRunner().invoke(cli.app, ["unbundle", *files, "--store", str(tmp_path / "there")])
    assert said.exit_code == 1 and "two.zip is of a study small with" in said.stderr and "one.zip has others" in said.stderr
    assert not (tmp_path / "there").exists()


def test_what_a_run_is_building_is_left_alone(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    parts = write_bundle(build("here"), "small", tmp_path / "small.zip", part_size=MIB).parts
    other, step = Store(tmp_path / "there"), build_grid(two_seeds)[0]
    with lease(other.folder(step.id)), pytest.raises(UserError, match="is being built by a run"):
        merge_bundles(other, parts)


def test_parts_that_are_there_or_too_small_are_refused(build: Build, tmp_path: Path) -> None:
    store = build("here")
    (tmp_path / "small.zip").mkdir()
    with pytest.raises(UserError, match=r"small\.zip is there already"):
        write_bundle(store, "small", tmp_path / "small", part_size=MIB)
    with pytest.raises(UserError, match=r"--part-size 2000: a part of this study needs \d+ bytes"):
        write_bundle(store, "small", tmp_path / "other.zip", part_size=2000)
    with pytest.raises(UserError, match=r"nothing of small is built"):
        write_bundle(build("empty", ()), "small", tmp_path / "other.zip", part_size=MIB)


@pytest.mark.parametrize("is_remote", [False, True])
def test_files_that_have_gone_come_back_with_the_bundle(
    build: Build, two_seeds: Experiment, tmp_path: Path, bucket: str, is_remote: bool
) -> None:
    store = build("here", uri=bucket if is_remote else None)
    parts = write_bundle(store, "small", tmp_path / "small.zip", part_size=MIB).parts
    before, grid = contents(store), build_grid(two_seeds)
    gone = [step for step in grid if step.stage in ("evaluation", "training_set", "task_model")]
    for step in gone:
        file_system, root = filesystem(store.folder(step.id))
        file_system.rm_file(f"{root}/results/values.bin")
    assert {member.step.name for member in make_plan(grid, store) if member.damage} == {step.name for step in gone}
    merged = merge_bundles(store, parts)
    assert (merged.num_new, merged.num_there) == (len(gone), len(grid) - len(gone))
    assert contents(store) == before and all(member.is_cached for member in make_plan(grid, store))
    assert merge_bundles(store, parts).num_new == 0


def test_what_is_new_has_lost_weights_built_again_and_nothing_else(build: Build, two_seeds: Experiment, tmp_path: Path) -> None:
    store, other, grid = build("here"), Store(tmp_path / "there"), build_grid(two_seeds)
    merge_bundles(other, write_bundle(store, "small", tmp_path / "small.zip", part_size=MIB).parts)
    evaluation = next(step for step in grid if step.stage == "evaluation")
    Path(join(other.folder(evaluation.id), RECORD_FILE)).unlink()
    planned = {member.step.fingerprint: member for member in make_plan(grid, other)}
    model = evaluation.inputs["task_model"]
    rebuilt = {member.step.name for member in planned.values() if member.lost_weights}
    # The model that is to be evaluated, what it is trained from, and no other.
    wanted = {model.name, evaluation.inputs["base_model"].name}
    wanted |= {source.name for source in model.inputs.values() if source.stage in ("base_model", "starting_point")}
    assert rebuilt == wanted
    assert planned[model.fingerprint].reason == f"its weights are not here, and {evaluation.name} needs them"
    # Complete already, and kept if what it was built from comes out as before.
    others = [member for member in planned.values() if member.step.stage == "evaluation" and member.is_cached]
    assert others and all(member.is_uncertain for member in others)


def test_the_commands_of_the_page(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = build("piece0")
    said = CliRunner().invoke(cli.app, ["bundle", "small", "piece0.zip", "--store", "piece0", "--part-size", "1MiB"])
    assert said.exit_code == 0, said.output
    assert "artifacts without weights in 1 file" in said.stdout
    said = CliRunner().invoke(cli.app, ["unbundle", "piece0.zip", "--store", "together"])
    assert said.exit_code == 0, said.output
    assert "artifacts of small merged, 0 were there" in said.stdout
    assert contents(Store("together")) == contents(store)
    said = CliRunner().invoke(cli.app, ["verify", "--store", "together"])
    assert said.exit_code == 0, said.output
    assert "of them have no weights here" in said.stdout
    said = CliRunner().invoke(cli.app, ["verify", "--store", "together", "--weights"])
    assert said.exit_code == 1 and "model/model.safetensors is missing" in said.stdout
    said = CliRunner().invoke(cli.app, ["bundle", "small", "whole.zip", "--store", "piece0", "--only", "whole"])
    assert said.exit_code == 0 and "artifacts of seed=0,1 without weights in 1 file" in said.stdout
    said = CliRunner().invoke(cli.app, ["bundle", "small", "other.zip", "--store", "piece0", "--part-size", "16 elephants"])
    assert said.exit_code == 1 and "--part-size 16 elephants: give a number of bytes" in said.stderr
