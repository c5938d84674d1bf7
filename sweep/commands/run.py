"""`blindsweep run`: build what is missing of a study, or rehearse it."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError
from pipelines.extras import check_installed
from pipelines.storage import join
from pipelines.terminal import console as new_console
from pipelines.terminal import outlive_readers
from sweep.commands.options import (
    DEFAULT_GPU,
    DEFAULT_STORE,
    ExperimentName,
    OnlyPiece,
    OtherName,
    Parameters,
    Price,
    SeedsAtOnce,
    SpotPrice,
    StoreUri,
    Throughputs,
    TimeLimit,
    TrackingUri,
    fail,
    not_negative,
    positive,
)
from sweep.commands.plan import show_plan
from sweep.commands.results import answer_of, describe_in_mlflow, write_report
from sweep.graph.records import Store, Study
from sweep.graph.spending import read_spending
from sweep.live.state import blocked_by, blocked_lines, is_blocked
from sweep.plan.throughputs import Gpu, read_table
from sweep.run.failures import in_lines, is_read_only

if TYPE_CHECKING:
    from analysis.verdicts.answer import Answer
    from sweep.graph.pieces import Only
    from sweep.index.kept_database import KeptDatabase
    from sweep.plan.plan import Planned
    from sweep.run.budget import Meter
    from sweep.run.study_run import Result

IMPORT_AFTER_S = 30.0
"""When a run waits for its steps and imports nothing itself."""


def run(
    experiment: ExperimentName,
    parameters: Parameters = None,
    other_name: OtherName = None,
    only: OnlyPiece = None,
    store: StoreUri = DEFAULT_STORE,
    address: Annotated[
        str | None,
        typer.Option(help="Join a running Ray cluster: `auto` on its head node. [default: this machine]"),
    ] = None,
    tracking_uri: TrackingUri = None,
    max_cpus: Annotated[float | None, typer.Option(callback=positive, help="Use at most so many CPUs at once.")] = None,
    max_gpus: Annotated[
        float | None,
        typer.Option(
            callback=not_negative, help="Use at most so many GPUs at once; on a cluster that grows, so many there can be."
        ),
    ] = None,
    seeds_at_once: SeedsAtOnce = None,
    max_failures: Annotated[
        int, typer.Option(min=0, help="Try a step so many times more that fails by itself; a lost machine does not count.")
    ] = 1,
    notice_time: Annotated[
        float,
        typer.Option(
            callback=not_negative, help="Seconds that steps have to commit after SIGUSR1 (Slurm's --signal) until the run ends."
        ),
    ] = 110,
    time_limit: TimeLimit = None,
    rehearse: Annotated[
        bool, typer.Option(help="Run every stage for a few batches only, into STORE/rehearsal: what would fail fails now.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be built, as `plan` does.")] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            callback=not_negative,
            help="Dollars that this study may cost in all, in this store: at the limit nothing new starts, what runs stops at "
            "its last commit, and the run ends with exit code 75; the same command with a larger budget goes on.",
        ),
    ] = None,
    keep_dependents: Annotated[
        bool, typer.Option(help="Keep, and mark, what was built from inputs that were built again with other content since.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            help=f"What estimates are for. [default: what the cluster or this machine has; without any {DEFAULT_GPU}]"
        ),
    ] = None,
    price: Price = None,
    spot_price: SpotPrice = None,
    throughputs: Throughputs = None,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    debug: Annotated[bool, typer.Option(help="Show tracebacks and the workers' own output.")] = False,
) -> None:
    """Build what is missing of a study, then write its report.

    A failed cell does not stop the others; the run then ends with an error that names it. Running the same
    command again, after a failure or a kill, does only what is missing.

        blindsweep run demo
        blindsweep run demo -p seeds=0,1,2 --max-cpus 2
        blindsweep run mini -p data=data -p model=models/SmolLM2-135M
        blindsweep run my_study.py --store s3://bucket/studies --address auto
        blindsweep run paper --rehearse
        blindsweep run my_study.py --only seed=3,4
    """
    began = time.monotonic()
    if time_limit is not None and time_limit <= notice_time:
        fail(
            f"--time-limit: of {time_limit:g} s steps have the last {notice_time:g} to commit (--notice-time); "
            "give more of it, or less of these"
        )
    if not dry_run:
        check_installed("blindsweep run")
        outlive_readers()
    if debug:
        os.environ["BLINDSWEEP_DEBUG"] = "1"
    from sweep.graph.pieces import parse_only
    from sweep.plan.rehearsal import FOLDER, rehearsal
    from sweep.run.session import RayOptions, accelerator_types, local_capacity
    from sweep.study.loading import load_experiment

    loaded, piece = load_experiment(experiment, parameters or [], name=other_name), parse_only(only) if only else None
    if rehearse:
        loaded, store, report = replace(loaded, experiment=rehearsal(loaded.experiment)), join(store, FOLDER), False
    where, table = Store(store), read_table(throughputs)
    options = RayOptions(address, max_cpus, max_gpus, max_failures, debug, seeds_at_once)
    if gpu is not None:
        table.gpu(gpu, price=price, spot_price=spot_price)
    found: list[Gpu] = []

    def find_gpu(planned: "Sequence[Planned]") -> Gpu:
        name = gpu
        # A cluster is joined for it only if the run is going to use its GPUs.
        if name is None and any(member.step.resources.total_gpus for member in planned if not member.is_cached):
            types = accelerator_types(options)
            name = table.gpu_of_nodes(types) if types or address is not None else None
        found.append(table.gpu(name or DEFAULT_GPU, price=price, spot_price=spot_price))
        return found[0]

    # One machine holds all the GPUs that the run may use, however few its largest step asks for.
    num_gpus = max_gpus if max_gpus is not None or address is not None else local_capacity(options).gpus or None
    if dry_run:
        show_plan(loaded, where, table, find_gpu, num_gpus, only=piece, seeds_at_once=seeds_at_once)
        return
    from sweep.index.address import check_address, mask
    from sweep.plan.damaged import check_damage
    from sweep.plan.plan import OVER_BUDGET, check_budget, check_memory, plan_study
    from sweep.run.budget import Meter, Prices
    from sweep.run.ends import Stop
    from sweep.run.study_run import FOR_REPORT, run_study
    from sweep.run.tracking import default_tracking_uri, kept_database

    default_uri = default_tracking_uri(where)
    tracking_uri = tracking_uri or default_uri
    check_address(tracking_uri)
    name = loaded.experiment.name
    plan = plan_study(
        loaded.experiment,
        where,
        table,
        find_gpu,
        num_gpus,
        reasons=False,
        keep_dependents=keep_dependents,
        only=piece,
        seeds_at_once=seeds_at_once,
        last=FOR_REPORT,
    )
    check_damage(plan.steps, where)
    check_memory(plan)
    if budget is not None and plan.missing:
        print(check_budget(plan, budget, read_spending(where, name)))
    if not found:
        # Whatever the cluster turns out to have is paid for at the given price.
        given = {row: table.gpu(row, price=price, spot_price=spot_price) for row in table.gpus}
        table = replace(table, gpus=given)
    meter = Meter(
        where, name, Prices(table, found[0] if found else None), plan.costs.estimate.steps if plan.costs else (), budget
    )
    database = kept_database(where, tracking_uri)
    if report:
        _import_meanwhile()
    # Its end as well: a notice must not break off the report, and a signal ends it as it ends the rest.
    with Stop(notice_time, time_limit, began) as stop:
        with _kept(database):
            result = run_study(
                loaded, where, tracking_uri, options, plan, stop, meter, keep_dependents=keep_dependents, only=piece
            )
        _say_what_is_built(name, result, piece)
        _warn(result, database, store)
        stop.notes.clear()
        if rehearse:
            _show_rehearsal(where, name)
        answer = None
        if report:
            answer = _report(where, name, is_partial=bool(result.failures or result.hold or piece))
        # A piece is not asked for its part of the answer: who builds further seeds may not want to know it yet.
        elif not rehearse and not piece and (answer := answer_of(where, name)):
            print(answer)
        if answer and result.index:
            with _kept(database):
                describe_in_mlflow(result.index, where, name, answer, is_reported=report)
        elsewhere = "" if tracking_uri == default_uri else f" --tracking-uri {quote(mask(tracking_uri, tracking_uri))}"
        print(f"compare runs: blindsweep ui --store {quote(store)}{elsewhere}")
        is_over_budget = bool(result.hold) and meter.is_reached
        if is_over_budget:
            _say_budget_is_reached(name, result, meter)
        if result.failures:
            fail(_describe_failures(name, result.failures))
        if is_over_budget:
            raise typer.Exit(OVER_BUDGET)


@contextlib.contextmanager
def _kept(database: "KeptDatabase | None") -> Iterator[None]:
    """With MLflow's database of a remote store open, if it can be: an index that is down must not stop the study."""
    with contextlib.ExitStack() as stack:
        try:
            if database:
                stack.enter_context(database.open())
        except (UserError, OSError) as error:
            print(f"Warning: what MLflow is told is not kept in the store: {in_lines(error)}", file=sys.stderr)
        yield


def _say_what_is_built(name: str, result: "Result", piece: "Only | None") -> None:
    losses = f"; machines, processes or the store were lost {result.num_losses} times under way" if result.num_losses else ""
    of_piece = f" of the piece {piece}" if piece else ""
    there, built = f"{result.num_cached:,} were there", f"{result.num_built - result.num_taken:,} built"
    built += f", {result.num_taken:,} by another run meanwhile" if result.num_taken else ""
    print(f"{name}: {result.num_steps:,} artifacts{of_piece}, {there}, {built}{losses}")


def _warn(result: "Result", database: "KeptDatabase | None", store: str) -> None:
    """Say what was set aside or could not be written, and what MLflow lacks."""
    warnings = list(result.notes)
    if result.tracking_errors:
        warnings.append(
            f"MLflow has not everything ({result.tracking_errors[0]}); "
            "nothing else is affected: `blindsweep reindex` fills it in"
        )
    if database and database.replaced_others:
        warnings.append(
            f"another run wrote {database.uri} meanwhile, and this one's has taken its place; "
            f"nothing else is affected: `blindsweep reindex --store {quote(store)}` makes one of both from the records"
        )
    for warning in warnings:
        print(f"Warning: {warning}", file=sys.stderr)


def _report(store: Store, name: str, *, is_partial: bool) -> "Answer | None":
    """Write the report and return its answer; None, and the reason on stderr, where there is nothing to write it of.

    Whatever keeps the report of a whole study from being written is raised, unless the store is only read.
    """
    reason = "no task model is evaluated yet"
    try:
        if _is_evaluated(store, name):
            return write_report(store, name, None, partial=is_partial)
    except (UserError, OSError) as error:
        if not is_partial and not is_read_only(error):
            raise
        reason = in_lines(error)
    print(f"no report: {reason}", file=sys.stderr)
    return None


def _say_budget_is_reached(name: str, result: "Result", meter: "Meter") -> None:
    built = f"{result.num_cached + result.num_built:,} of {result.num_steps:,} artifacts are built"
    goes_on = "the same command with a larger --budget goes on"
    print(f"{name}: {meter.line()}, and {result.hold}: {built}; {goes_on}", file=sys.stderr)


def _is_evaluated(store: Store, name: str) -> bool:
    return any(step.stage == "evaluation" and step.record for step in Study.load(store, name).steps)


def _show_rehearsal(store: Store, name: str) -> None:
    from rich.table import Table

    from sweep.plan.rehearsal import summarize

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("stage", "ran", "seconds", "peak GPU GiB", "examples/s"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    records = [step.record for step in Study.load(store, name).steps if step.record]
    for stage in summarize(records):
        peak = "" if stage.peak_gpu_memory_gib is None else f"{stage.peak_gpu_memory_gib:.1f}"
        speed = "" if stage.examples_per_s is None else f"{stage.examples_per_s:,.1f}"
        table.add_row(stage.stage, str(stage.num_built), f"{stage.seconds:.1f}", peak, speed)
    console = new_console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print("medians of one artifact; a rehearsal's speeds include warming up, and its accuracies mean nothing")


def _describe_failures(name: str, failures: Sequence[Mapping[str, str]]) -> str:
    blocked = [failure for failure in failures if is_blocked(failure)]
    failed = [failure for failure in failures if not is_blocked(failure)]
    lines = [f"{name}: {len(failed)} failed, {len(blocked)} blocked by them; all others are complete"]
    for failure in failed:
        lines.append(f"  failed   {failure['stage']}/{failure['slug']}: {failure['error']}")
        if failure.get("log"):
            lines.append(f"           full traceback: {failure['log']}")
    return "\n".join([*lines, *blocked_lines(blocked_by(blocked))])


def _import_meanwhile() -> None:
    """Import what the report is made with while the steps run, for which it would be waited at the end."""

    def load() -> None:
        import analysis.report.report  # noqa: F401

    timer = threading.Timer(IMPORT_AFTER_S, load)
    timer.daemon = True
    timer.start()
