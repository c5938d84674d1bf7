"""Results of a study: `blindsweep report`, `explain`, `verdicts`, `compare` and `power`."""

import json as js
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import join as join_words
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from pipelines.storage import exists, join, move, publish
from sweep.commands.completion import studies
from sweep.commands.options import (
    DEFAULT_STORE,
    CostPerSeed,
    Json,
    StoreUri,
    StudyName,
    not_negative,
    points,
    positive_points,
    study_name,
)
from sweep.graph.explain import as_json, as_text
from sweep.graph.explain import explain as origins_of
from sweep.graph.records import Store, Study
from sweep.graph.reports import REPORT_OF, read_report_of, report_folder, report_of

if TYPE_CHECKING:
    from analysis.verdicts.answer import Answer


def report(
    study: StudyName,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Report what is there and name what is missing.")] = False,
    output: Annotated[Path | None, typer.Option(help="A new folder for it. [default: reports/STUDY in the store]")] = None,
) -> None:
    """Write the report of a study: figures, tables, and the numbers behind them."""
    write_report(Store(store), study_name(study), output, partial=partial)


def write_report(store: Store, name: str, output: Path | None, *, partial: bool) -> "Answer":
    """Write the report of the study `name` into `output`, by default into the store; print its answer, which is returned, and
    where it is.

    One that lies in its place in the store and is of other artifacts, as after a run with other parameters, is kept beside it.
    Raises UserError where `output` holds anything but an earlier report of the same artifacts.
    """
    from analysis.report.report import write_report as write

    of = report_of(Study.load(store, name))
    if output:
        _check_output(output, of)
    target = report_folder(store, name)
    with tempfile.TemporaryDirectory(prefix="blindsweep-") as folder:
        written = write(store, name, folder, partial=partial)
        of = of | {"answer": asdict(written.answer)}
        (Path(folder) / REPORT_OF).write_text(js.dumps(of, indent=1, ensure_ascii=False))
        if output:
            shutil.copytree(folder, output, dirs_exist_ok=True)
            print(f"{written.answer}\nreport: {output / written.path.name}")
            return written.answer
        if kept := _keep_other(target, str(of["id"])):
            print(f"kept: the report of other parameters is {join(kept, written.path.name)} now")
        publish(folder, target)
    print(f"{written.answer}\nreport: {join(target, written.path.name)}")
    if not store.is_local:
        print(f"  to read it here: blindsweep report {quote(name)} --store {quote(store.uri)} --output FOLDER")
    return written.answer


def _check_output(output: Path, of: Mapping[str, object]) -> None:
    """Raise UserError unless a report of `of` replaces nothing in the folder `output` but its own earlier one."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file; name a folder for the report")
    before = read_report_of(str(output))
    if not any(output.iterdir()) or (before.get("study"), before.get("id")) == (of["study"], of["id"]):
        return
    what = f"holds a report of {before['study']} with other artifacts" if before.get("study") == of["study"] else "is not empty"
    raise UserError(f"{output} {what}; name a folder that is not there, so that nothing is replaced")


def _keep_other(target: str, own: str) -> str:
    """Move a report that is of other artifacts than those of `own` out of the way; returns where it is, "" if there is none."""
    before = str(read_report_of(target).get("id", ""))
    if before == own or not exists(join(target, "report.html")):
        return ""
    # No study has such a name. One of an earlier version does not say what it is of.
    kept = f"{target}@{before if re.fullmatch('[0-9a-f]+', before) else 'earlier'}"
    move(target, kept)
    return kept


def answer_of(store: Store, name: str) -> "Answer | None":
    """A study's answer by what is there of it; None where nothing can be judged."""
    from analysis.verdicts.answer import answer
    from analysis.verdicts.command import command_of
    from analysis.verdicts.evidence import load_evidence
    from analysis.verdicts.verdicts import judge_evidence

    try:
        study = Study.load(store, name)
        evidence = load_evidence(store, study, partial=True)
        return answer(judge_evidence(evidence), command_of(store, study), num_missing=len(evidence.responses.missing))
    except (UserError, OSError):
        return None


def describe_in_mlflow(uri: str, store: Store, name: str, said: "Answer", *, is_reported: bool) -> None:
    """Put a study's answer into MLflow, with the report that was just written of it; or say that it could not be."""
    from sweep.index.address import mask
    from sweep.index.study_page import describe_study
    from sweep.run.study_run import describe

    try:
        if not (is_reported and describe(store, name, uri)):
            describe_study(uri, name, said.said, said.command)
    except Exception as error:  # an index that is down must not stop anything
        print(mask(f"Warning: MLflow lacks the answer of {name}: {type(error).__name__}: {error}", uri), file=sys.stderr)


def explain(
    study: StudyName,
    metric: Annotated[str, typer.Argument(help="A metric's name, as in MLflow and the report: hans/accuracy.")],
    cell: Annotated[str, typer.Option(help="The artifact's slug, such as start5000-original-1800-seed0. [default: all]")] = "",
    store: StoreUri = DEFAULT_STORE,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say where a number comes from: its artifact, rows, run and configuration, and all that it was built from."""
    where = Store(store)
    origins = origins_of(where, Study.load(where, study_name(study)), metric, cell)
    if json:
        print(js.dumps([as_json(origin) for origin in origins], indent=1, ensure_ascii=False))
    elif len(origins) == 1:
        print("\n".join(as_text(origins[0])))
    else:
        for origin in origins:
            print(f"{origin.record.slug}  {origin.value}")
        cell = join_words(["blindsweep", "explain", study, metric, "--cell", origins[0].record.slug])
        print("one of them in full: " + cell + ("" if store == DEFAULT_STORE else f" --store {quote(store)}"))


def verdicts(
    study: StudyName,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Judge by what is there and name what is missing.")] = False,
    margin: Annotated[
        float | None,
        typer.Option(
            callback=positive_points,
            help="Points of accuracy within which two are 'about as much', for the claims' own. [default: as declared]",
        ),
    ] = None,
    undertrained: Annotated[int, typer.Option(min=0, help="Most examples of a starting point that is undertrained.")] = 20_000,
    cost_per_seed: CostPerSeed = None,
    json: Annotated[
        bool, typer.Option("--json", help="All the numbers, subcases and sensitivities too, for programs.")
    ] = False,
) -> None:
    """Judge a study's claims: supported, refuted, equivalent, or cannot tell and how many seeds it would take.

    The claims are those that the study's file declares;
    the paper's, where it declares none.

        blindsweep verdicts demo
        blindsweep verdicts mini --partial --cost-per-seed 12.5
    """
    from analysis.report.sections import marks_of
    from analysis.report.terminal import print_verdicts, verdicts_json
    from analysis.verdicts.answer import answer
    from analysis.verdicts.command import command_of
    from analysis.verdicts.evidence import load_evidence
    from analysis.verdicts.verdicts import judge_evidence

    name, where = study_name(study), Store(store)
    loaded = Study.load(where, name)
    evidence = load_evidence(where, loaded, partial=partial)
    as_share = None if margin is None else margin / 100
    judged = judge_evidence(evidence, margin=as_share, undertrained=undertrained, cost_per_seed=cost_per_seed)
    said = answer(judged, command_of(where, loaded), num_missing=len(evidence.responses.missing))
    if json:
        print(js.dumps(verdicts_json(name, said, judged, evidence, marks_of(loaded)), indent=1, ensure_ascii=False))
        return
    print_verdicts(said, judged, tuple(evidence.arms), marks_of(loaded))


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A study's name or file.py.", autocompletion=studies)],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="The study that it is set against: differences are B minus A.", autocompletion=studies
        ),
    ],
    store: StoreUri = DEFAULT_STORE,
    other_store: Annotated[str | None, typer.Option(help="The store of B. [default: that of A]")] = None,
    json: Json = False,
) -> None:
    """Set two studies against each other: B minus A where both have the cell, paired by seed, with intervals.

    By accuracy, and by margin, AUC and pull where going by the heuristic is wrong. It says first what cannot be compared
    (another task, other test sets) and in what else the two differ (base model, training data, parameters), of which a
    difference may be.

        blindsweep compare demo demo_long
        blindsweep compare demo demo --other-store s3://bucket/studies --json
    """
    from analysis.comparison.studies import checked, compare_studies
    from analysis.comparison.terminal import as_json as comparison_json
    from analysis.comparison.terminal import lines

    where, other = Store(store), Store(other_store or store, option="--other-store")
    comparison = checked(compare_studies((where, study_name(a)), (other, study_name(b))))
    print(js.dumps(comparison_json(comparison), indent=1, ensure_ascii=False) if json else "\n".join(lines(comparison)))


def power(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A pilot: a study of two seeds or more.", autocompletion=studies)
    ] = None,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Use what is there of the pilot.")] = False,
    seed_sd: Annotated[
        float | None,
        typer.Option(
            callback=positive_points,
            help="Instead of a pilot: the standard deviation of one seed's difference, in points.",
        ),
    ] = None,
    item_error: Annotated[
        float,
        typer.Option(
            callback=points,
            help="With --seed-sd: the standard error that the test items leave, in points.",
        ),
    ] = 0,
    cost_per_seed: CostPerSeed = None,
    generator_sd: Annotated[
        float | None,
        typer.Option(
            callback=points, help="The standard deviation of generators' true differences, in points, for a mix of both."
        ),
    ] = None,
    cost_per_generator: Annotated[
        float | None,
        typer.Option(
            callback=not_negative,
            help="What one generator with its pool costs, for a mix of both; `plan` says it.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Say how many seeds a difference needs, how small a one some seeds detect, and what they cost.

    With --generator-sd, also the cheapest generators with seeds each that see it,
    generators being what is judged by.

        blindsweep power demo --cost-per-seed 12.5
        blindsweep power --seed-sd 17.5
        blindsweep power mini --generator-sd 5 --cost-per-generator 40 --cost-per-seed 12.5
    """
    if (study is None) == (seed_sd is None):
        raise UserError("give a STUDY to take variances from, or --seed-sd, and not both")
    if (generator_sd is None) != (cost_per_generator is None) or (generator_sd is not None and cost_per_seed is None):
        raise UserError(
            "a mix of generators and seeds takes --generator-sd, --cost-per-generator and --cost-per-seed; give all three"
        )
    from analysis.report.terminal import power_json, print_power
    from analysis.verdicts.power import Variance, mix_table, pilot

    variances, why_not = [], list[str]()
    if seed_sd is not None:
        variances = [Variance("given", (seed_sd / 100) ** 2, (item_error / 100) ** 2)]
    else:
        from analysis.verdicts.evidence import load_evidence

        assert study is not None
        variances, why_not = pilot(load_evidence(Store(store), study_name(study), partial=partial))
    mixes = None
    if generator_sd is not None and cost_per_generator is not None and cost_per_seed is not None:
        mixes = mix_table(
            variances, sd_generator=generator_sd / 100, cost_generator=cost_per_generator, cost_seed=cost_per_seed
        )
    if json:
        print(js.dumps(power_json(variances, why_not, cost_per_seed, mixes), indent=1, ensure_ascii=False))
        return
    print_power(variances, why_not, cost_per_seed, mixes)
