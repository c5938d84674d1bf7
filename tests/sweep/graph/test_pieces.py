"""Pieces of a study: what belongs to one, and what two of them must not build apart."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.finetune.base_model import ScratchModelConfig
from sweep.graph.pieces import Only, check_apart, parse_only, piece_of, seeds_lacking
from sweep.graph.records import Record
from sweep.graph.stages import REGISTRY, Job
from sweep.run.study_run import manifest
from sweep.study.experiment import Experiment
from sweep.study.grid import build_grid
from sweep.study.loading import Loaded


@pytest.fixture
def experiment(experiment: Experiment, llama: Experiment) -> Experiment:
    """The small study from a checkpoint, which every piece writes alike."""
    return dataclasses.replace(experiment, base_model=llama.base_model)


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("seed=3", Only("seed", frozenset({3}))),
        ("seed=3,4", Only("seed", frozenset({3, 4}))),
        ("generator=1", Only("generator", frozenset({1}))),
        ("shared", Only(shared=True)),
        ("shared,seed=3,4", Only("seed", frozenset({3, 4}), shared=True)),
    ],
)
def test_an_only_is_read(text: str, only: Only) -> None:
    assert parse_only(text) == only
    assert str(only) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seed",
        "seed=",
        "seed=a",
        "seed=1;2",
        "kind=original",
        "seed=-1",
        "generator=1,",
        "shared,",
        "shared=1",
        "seed=1,shared",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--only {text}: "):
        parse_only(text)


def test_a_piece_is_its_seeds_with_all_that_they_need(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2), generators=3))
    piece = piece_of(grid, parse_only("seed=1"))
    assert {step.coordinates.get("seed", 1) for step in piece} == {1}
    assert {step.coordinates.get("generator", 1) for step in piece} == {1}
    assert {step.stage for step in piece} == {step.stage for step in grid}
    there = {step.fingerprint for step in piece}
    assert all(source.fingerprint in there for step in piece for source in step.inputs.values())
    assert piece == piece_of(grid, parse_only("generator=1"))
    check_apart(grid, piece, (), parse_only("seed=1"))


def test_seeds_of_one_generator_are_not_built_apart(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2, 3), generators=2))
    only = parse_only("seed=1")
    with pytest.raises(UserError, match=r"--only seed=1: .*(generator|pool).* would be built here, and .* of another piece"):
        check_apart(grid, piece_of(grid, only), (), only)
    for text in ("seed=1,3", "generator=1"):
        check_apart(grid, piece_of(grid, parse_only(text)), (), parse_only(text))


def test_what_seeds_share_is_a_piece_that_comes_first(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(0, 1)))
    only = parse_only("seed=1")
    shared = piece_of(grid, parse_only("shared"))
    assert {step.stage for step in shared} == {"sources", "base_model", "generator", "synthetic_pool"}
    check_apart(grid, shared, (), parse_only("shared"))
    with pytest.raises(UserError, match=r"--only shared"):
        check_apart(grid, piece_of(grid, only), (), only)
    check_apart(grid, piece_of(grid, only), {step.fingerprint for step in shared}, only)


def test_a_base_model_that_is_trained_is_shared(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, base_model=ScratchModelConfig(), seeds=(0, 1, 2), generators=3))
    only = parse_only("seed=1")
    with pytest.raises(
        UserError, match=r"base_model/base would be built here, .*\(--only shared, .* copy its folder to the same"
    ):
        check_apart(grid, piece_of(grid, only), (), only)
    shared = piece_of(grid, parse_only("shared"))
    assert [step.name for step in shared] == ["sources/data", "base_model/base"]
    check_apart(grid, shared, (), parse_only("shared"))
    check_apart(grid, piece_of(grid, only), {step.fingerprint for step in shared}, only)
    with pytest.raises(
        UserError, match=r"base_model/base came without its weights, .* copy its folder from the store that has"
    ):
        check_apart(grid, piece_of(grid, only), (), only, {shared[1].fingerprint})
    first = parse_only("shared,seed=1")
    check_apart(grid, piece_of(grid, first), (), first)


def test_one_piece_may_build_what_is_shared_along_with_its_seeds(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2)))
    first, second = parse_only("shared,seed=1"), parse_only("seed=0,2")
    piece = piece_of(grid, first)
    assert piece == piece_of(grid, parse_only("seed=1"))
    check_apart(grid, piece, (), first)
    check_apart(grid, piece_of(grid, second), {step.fingerprint for step in piece}, second)
    with pytest.raises(UserError, match=r"--only shared,seed=0,2\)"):
        check_apart(grid, piece_of(grid, second), (), second)


def test_a_pool_that_is_read_from_a_file_is_no_pieces_own(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("premise,hypothesis,label\n" + "a b,a,entailment\nc,d,neutral\ne,f,contradiction\n" * 40)
    own = dataclasses.replace(
        experiment, generator=None, generation=None, synthetic=str(tmp_path / "pool.csv"), seeds=(0, 1), generators=1
    )
    grid = build_grid(own)
    (pool,) = [step for step in grid if step.stage == "synthetic_pool"]
    for seed in (0, 1):
        only = parse_only(f"seed={seed}")
        piece = piece_of(grid, only)
        assert pool in piece
        check_apart(grid, piece, (), only)
    with pytest.raises(UserError, match="seeds of this study share nothing that is trained"):
        piece_of(grid, parse_only("shared"))
    # What two pieces build of it is the same.
    for folder in ("one", "two"):
        REGISTRY["synthetic_pool"].run(Job(pool.config, {}, str(tmp_path / folder)))
    written = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(written) == 3
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in written)

    # So it is of a manifest, by its record.
    study = manifest(Loaded(own, {}), grid)
    record = Record(pool.stage, pool.slug, pool.fingerprint, pool.payload)
    steps = [dataclasses.replace(step, record=record if step.fingerprint == pool.fingerprint else None) for step in study.steps]
    with pytest.raises(UserError, match="seeds of this study share nothing that is trained"):
        piece_of(steps, parse_only("shared"))


def test_a_pools_judgement_is_its_seeds_and_the_judge_is_shared(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(0, 1, 2), generators=3, judge=40))
    judgements = {step.slug: step.fingerprint for step in grid if step.stage == "judgement"}
    assert len(judgements) == 3
    shared = piece_of(grid, parse_only("shared"))
    assert [step.slug for step in shared if step.stage == "starting_point"] == ["judge0", "judge40"]
    assert not {step.fingerprint for step in shared} & {*judgements.values()}
    only = parse_only("seed=1")
    piece = piece_of(grid, only)
    assert {step.fingerprint for step in piece} & {*judgements.values()} == {judgements["judge-pool1"]}
    with pytest.raises(
        UserError, match=r"starting_point/judge40 would be built here, and judgement/judge-pool, which is of another"
    ):
        check_apart(grid, piece, (), only)
    check_apart(grid, piece, {step.fingerprint for step in shared}, only)
    with pytest.raises(UserError, match=r"starting_point/judge40 came without its weights, .* from the store that has"):
        check_apart(grid, piece, (), only, {step.fingerprint for step in shared})
    both = parse_only("shared,seed=1")
    check_apart(grid, piece_of(grid, both), (), both)


def test_a_manifest_says_how_much_a_seed_lacks(experiment: Experiment) -> None:
    grid = build_grid(dataclasses.replace(experiment, seeds=(4, 0, 3, 7), generators=2))
    listed = manifest(Loaded(experiment, {}), grid).steps
    piece = {step.fingerprint for step in piece_of(grid, parse_only("seed=0"))}
    built = [
        dataclasses.replace(step, record=Record(step.stage, step.slug, step.fingerprint, {}))
        if step.fingerprint in piece
        else step
        for step in listed
    ]
    lacking = seeds_lacking(built)
    assert list(lacking) == [4, 0, 3, 7] and lacking[0] == 0
    # Seed 4 has the same generator, and seeds 3 and 7 the other one.
    assert 0 < lacking[4] < lacking[3] == lacking[7] == lacking[4] + 2
    assert [step.fingerprint for step in piece_of(listed, parse_only("seed=0"))] == [
        step.fingerprint for step in piece_of(grid, parse_only("seed=0"))
    ]
    assert len(piece_of(listed, parse_only("shared"))) == len(piece_of(grid, parse_only("shared")))


def test_an_unknown_seed_and_a_study_that_shares_nothing_are_refused(experiment: Experiment) -> None:
    one_each = build_grid(dataclasses.replace(experiment, seeds=(0, 1), generators=2))
    with pytest.raises(UserError, match=r"the study has no seed 7; its steps have 0, 1"):
        piece_of(one_each, parse_only("seed=1,7"))
    with pytest.raises(UserError, match="share nothing that is trained"):
        piece_of(one_each, parse_only("shared"))
    with pytest.raises(UserError, match="the study has no generator 0; its steps have no generators of their own"):
        piece_of(build_grid(experiment), parse_only("generator=0"))
