"""The command line: `blindsweep run demo`. Everything heavy is imported by the command that needs it."""

import functools
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import UserError

if TYPE_CHECKING:
    from sweep.loading import Loaded
    from sweep.records import Store

app = typer.Typer(
    name="blindsweep",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Does finetuning on generated data give a model blindspots? Run the whole study.

A generator is finetuned, writes a synthetic pool; task models are finetuned from several starting points on
original, synthetic and biased synthetic training sets; all are evaluated on general and blindspot test sets.

**From nothing to a report**, on any machine:

    blindsweep run demo

**The same with your own settings**, or your own experiment:

    blindsweep run demo -p seeds=0,1,2
    blindsweep run my_study.py

Everything built lies in a store (`--store`) under the fingerprint of all that can change it. Running again
builds only what is missing, after a crash or a changed setting: `blindsweep plan` says beforehand what and
why.""",
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"blindsweep {version('blindsweep')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


data = typer.Typer(no_args_is_help=True, help="MultiNLI and HANS, for the studies on real data.")
app.add_typer(data, name="data")

Experiment = Annotated[
    str,
    typer.Argument(metavar="EXPERIMENT", help="A built-in experiment (see `experiments`) or file.py[:function]."),
]
Study = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A study's name (a built-in experiment's is its own) or file.py."),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="NAME=VALUE", help="Set a parameter of the experiment; may be repeated."),
]
StoreUri = Annotated[
    str,
    typer.Option("--store", envvar="BLINDSWEEP_STORE", help="Folder or URI (s3://, gs://) of all artifacts."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server or database. [default: mlflow.db in the store]"),
]
GpuName = Annotated[str, typer.Option("--gpu", help="What estimates are for: a GPU with a row in `plan --sources`.")]
Price = Annotated[float | None, typer.Option(help="Dollars you pay for one hour of one GPU. [default: list price]")]
CostPerSeed = Annotated[float | None, typer.Option(help="What one seed of the whole grid costs, in your own currency.")]
DEFAULT_STORE = "./blindsweep-store"
DEFAULT_GPU = "h200"
COMPARED_NUMBERS_OF_GPUS = (1, 2, 4, 8)


def _one_clear_error(command: Callable[..., None]) -> Callable[..., None]:
    """End a command with one message: for the user's mistakes, and for a defect of ours with its traceback's file."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except BrokenPipeError:
            # The reader of a pipe has seen enough; Python must not complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            _fail("interrupted; what is built is kept, and the same command goes on from there", code=130)
        except Exception as error:
            if os.environ.get("BLINDSWEEP_DEBUG"):
                raise
            _fail(_explain(error))

    return wrapped


def _explain(error: Exception) -> str:
    from sweep.trial import is_disk_full, one_line

    if isinstance(error, UserError | OSError) or is_disk_full(error):
        return one_line(error)
    with tempfile.NamedTemporaryFile("w", prefix="blindsweep-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return f"{one_line(error)} (not expected; the whole traceback is in {file.name})"


def _fail(message: str, code: int = 1) -> None:
    print(f"Error: {message}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
@_one_clear_error
def run(
    experiment: Experiment,
    parameters: Parameters = None,
    store: StoreUri = DEFAULT_STORE,
    address: Annotated[
        str | None,
        typer.Option(help="Join a running Ray cluster: `auto` on its head node. [default: this machine]"),
    ] = None,
    tracking_uri: TrackingUri = None,
    max_cpus: Annotated[float | None, typer.Option(help="Use at most so many CPUs at once.")] = None,
    max_gpus: Annotated[
        float | None,
        typer.Option(help="Use at most so many GPUs at once; on a cluster that grows, so many there can be."),
    ] = None,
    max_failures: Annotated[int, typer.Option(help="Try a failed step so many times more (lost spot machines, for one).")] = 0,
    rehearse: Annotated[
        bool, typer.Option(help="Run every stage for a few batches only, into STORE/rehearsal: what would fail fails now.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be built, as `plan` does.")] = False,
    budget: Annotated[
        float | None,
        typer.Option(help="Do not start if what is missing would cost more dollars, by the estimate of `plan`."),
    ] = None,
    gpu: GpuName = DEFAULT_GPU,
    price: Price = None,
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
    """
    if debug:
        os.environ["BLINDSWEEP_DEBUG"] = "1"
    if dry_run:
        _show_plan(experiment, parameters, store, gpu=gpu, price=price, num_gpus=max_gpus, rehearse=rehearse)
        return
    from sweep.loading import load_experiment
    from sweep.records import Store
    from sweep.scheduler import RayOptions
    from sweep.study import run_study
    from sweep.tracking import default_tracking_uri

    loaded = load_experiment(experiment, parameters or [])
    if rehearse:
        loaded, store, report = _rehearsal(loaded), _rehearsal_store(store), False
    where = Store(store)
    estimate = _estimate_before_run(loaded, where, budget, gpu, price, max_gpus)
    tracking_uri = tracking_uri or default_tracking_uri(where)
    options = RayOptions(address, max_cpus, max_gpus, max_failures, debug)
    result = run_study(loaded, where, tracking_uri, options, estimate)
    name = loaded.experiment.name
    print(f"{name}: {result.num_steps} artifacts, {result.num_cached} were there, {result.num_built} built")
    if result.tracking_errors:
        print(
            f"Warning: MLflow missed {len(result.tracking_errors)} writes ({result.tracking_errors[0]}); "
            "nothing else is affected: `blindsweep reindex` fills them in",
            file=sys.stderr,
        )
    if rehearse:
        _show_rehearsal(where, name)
    if report:
        try:
            _write_report(where, name, None, partial=bool(result.failures))
        except UserError as error:
            if not result.failures:
                raise
            print(f"no report: {error}", file=sys.stderr)
    print(f"compare runs: blindsweep ui --store {store}" + _unless_default(tracking_uri, where))
    if result.failures:
        _fail(_describe_failures(name, result.failures))


def _rehearsal(loaded: "Loaded") -> "Loaded":
    from dataclasses import replace

    from sweep.rehearsal import rehearsal

    return replace(loaded, experiment=rehearsal(loaded.experiment))


def _rehearsal_store(store: str) -> str:
    from pipelines.storage import join
    from sweep.rehearsal import FOLDER

    return join(store, FOLDER)


def _show_rehearsal(store: "Store", name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from sweep.records import Study
    from sweep.rehearsal import summarize

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("stage", "ran", "seconds", "peak GPU GiB", "examples/s"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    records = [step.record for step in Study.load(store, name).steps if step.record]
    for one in summarize(records):
        peak = "" if one.peak_gpu_memory_gib is None else f"{one.peak_gpu_memory_gib:.1f}"
        speed = "" if one.examples_per_s is None else f"{one.examples_per_s:,.1f}"
        table.add_row(one.stage, str(one.num_built), f"{one.seconds:.1f}", peak, speed)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print("medians of one artifact; a rehearsal's speeds include warming up, and its accuracies mean nothing")


def _unless_default(tracking_uri: str, store: "Store") -> str:
    from sweep.tracking import default_tracking_uri

    return "" if tracking_uri == default_tracking_uri(store) else f" --tracking-uri {tracking_uri}"


def _describe_failures(name: str, failures: Any) -> str:
    blocked = [one for one in failures if one["error"].startswith("blocked by")]
    failed = [one for one in failures if one not in blocked]
    lines = [f"{name}: {len(failed)} failed, {len(blocked)} blocked by them; all others are complete"]
    for one in failed:
        lines.append(f"  failed   {one['stage']}/{one['slug']}: {one['error']}")
        if one.get("log"):
            lines.append(f"           full traceback: {one['log']}")
    lines += _count_blocked(blocked)
    return "\n".join(lines)


def _count_blocked(blocked: Any) -> list[str]:
    """One line for each step that others were given up for."""
    counts: dict[str, Counter[str]] = {}
    for one in blocked:
        counts.setdefault(one["error"], Counter())[one["stage"]] += 1
    return [
        f"  {error}: " + ", ".join(f"{count} {stage}" for stage, count in stages.items()) for error, stages in counts.items()
    ]


@app.command()
@_one_clear_error
def plan(
    experiment: Experiment,
    parameters: Parameters = None,
    store: StoreUri = DEFAULT_STORE,
    all_steps: Annotated[bool, typer.Option("--all", help="List every step, not only counts and reasons.")] = False,
    gpu: GpuName = DEFAULT_GPU,
    num_gpus: Annotated[float, typer.Option(help="GPUs that the wall time is reckoned for.")] = 8,
    price: Price = None,
    spot_price: Annotated[float | None, typer.Option(help="The same, for spot GPUs.")] = None,
    sources: Annotated[
        bool, typer.Option(help="List the figures that the estimates are made from, and their sources.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="All the numbers, for programs.")] = False,
) -> None:
    """Say what `run` would build and what it would cost, what is there already, and which changed field is the reason.

    GPU-hours, money, tokens, disk and wall time are estimates from a table of measured throughputs. No GPU is
    touched.

        blindsweep plan demo
        blindsweep plan mini --gpu h100 --price 2.5 --num-gpus 4
    """
    _show_plan(experiment, parameters, store, all_steps, gpu, price, spot_price, num_gpus, sources, json)


def _show_plan(
    experiment: str,
    parameters: list[str] | None,
    store_uri: str,
    all_steps: bool = False,
    gpu: str = DEFAULT_GPU,
    price: float | None = None,
    spot_price: float | None = None,
    num_gpus: float | None = None,
    sources: bool = False,
    as_json: bool = False,
    rehearse: bool = False,
) -> None:
    import json

    from sweep.costs import read_table
    from sweep.grid import build_grid
    from sweep.loading import load_experiment
    from sweep.plan import make_plan, plan_or_reason
    from sweep.plan_page import plan_json, print_plan, print_sources
    from sweep.records import Store

    loaded = load_experiment(experiment, parameters or [])
    if rehearse:
        loaded, store_uri = _rehearsal(loaded), _rehearsal_store(store_uri)
    store, table = Store(store_uri), read_table()
    priced = table.gpu(gpu, price=price, spot_price=spot_price)
    planned = make_plan(build_grid(loaded.experiment), store)
    costs, why_not = plan_or_reason(planned, store, table, priced, num_gpus, others=COMPARED_NUMBERS_OF_GPUS)
    if as_json:
        print(json.dumps(plan_json(loaded.experiment, planned, costs, why_not), indent=1, ensure_ascii=False))
        return
    print_plan(loaded.experiment, planned, costs, why_not, all_steps=all_steps)
    if sources:
        print_sources(table, costs)


def _estimate_before_run(
    loaded: "Loaded", store: "Store", budget: float | None, gpu: str, price: float | None, num_gpus: float | None
) -> dict[str, Any]:
    """The estimate of `plan`, held against the budget."""
    from sweep.costs import read_table
    from sweep.grid import build_grid
    from sweep.plan import check_budget, make_plan, plan_or_reason
    from sweep.plan_page import plan_json

    table = read_table()
    planned = make_plan(build_grid(loaded.experiment), store, reasons=False)
    costs, why_not = plan_or_reason(planned, store, table, table.gpu(gpu, price=price), num_gpus)
    if budget is not None:
        if costs is None:
            raise UserError(f"--budget cannot be checked: {why_not}; leave it out to run all the same")
        check_budget(loaded.experiment.name, costs, budget)
    return plan_json(loaded.experiment, planned, costs, why_not)


@app.command()
@_one_clear_error
def status(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, all in the store.")] = None,
    store: StoreUri = DEFAULT_STORE,
) -> None:
    """Say how much of a study is built, and what failed in its last run."""
    from sweep.loading import study_name
    from sweep.records import Store, Study

    where = Store(store)
    names = [study_name(study)] if study else where.studies()
    if not names:
        print(f"no study in {where.uri} yet; begin with: blindsweep run demo")
    for name in names:
        loaded = Study.load(where, name)
        done = Counter(step.stage for step in loaded.steps if step.record)
        totals = Counter(step.stage for step in loaded.steps)
        print(f"{name}: {sum(done.values())} of {sum(totals.values())} artifacts built")
        for mark, count in loaded.marks.items():
            print(f"  marked: {mark} (on {count} of {sum(done.values())} artifacts)")
        if study:
            for stage, total in totals.items():
                print(f"  {stage:<15} {done[stage]}/{total}")
        there = {step.fingerprint for step in loaded.steps if step.record}
        failures = [one for one in loaded.failures if one["fingerprint"] not in there]
        for failure in failures:
            if not failure["error"].startswith("blocked by"):
                print(f"  not built: {failure['stage']}/{failure['slug']}: {failure['error']}")
        for line in _count_blocked([one for one in failures if one["error"].startswith("blocked by")]):
            print(line)


@app.command()
@_one_clear_error
def report(
    study: Study,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Report what is there and name what is missing.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write into. [default: reports/STUDY]")] = None,
) -> None:
    """Write the report of a study: figures, tables, and the numbers behind them."""
    from sweep.loading import study_name
    from sweep.records import Store

    _write_report(Store(store), study_name(study), output, partial)


def _write_report(store: "Store", name: str, output: Path | None, partial: bool) -> None:
    from analysis.report import build_report

    folder = output or (Path(store.uri) if store.is_local else Path.cwd()) / "reports" / name
    print(f"report: {build_report(store, name, folder, partial=partial)}")


@app.command()
@_one_clear_error
def explain(
    study: Study,
    metric: Annotated[str, typer.Argument(help="A metric's name, as in MLflow and the report: hans/accuracy.")],
    cell: Annotated[str, typer.Option(help="The artifact's slug, such as start5000-original-1800-seed0. [default: all]")] = "",
    store: StoreUri = DEFAULT_STORE,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say where a number comes from: its artifact, rows, run and configuration, and all that it was built from."""
    from json import dumps

    from sweep.explain import as_json, as_text
    from sweep.explain import explain as origins_of
    from sweep.loading import study_name
    from sweep.records import Store, Study

    where = Store(store)
    origins = origins_of(where, Study.load(where, study_name(study)), metric, cell)
    if json:
        print(dumps([as_json(origin) for origin in origins], indent=1, ensure_ascii=False))
    elif len(origins) == 1:
        print("\n".join(as_text(origins[0])))
    else:
        for origin in origins:
            print(f"{origin.record.slug}  {origin.value}")
        print(f"one of them in full: blindsweep explain {study} {metric} --cell {origins[0].record.slug}")


@app.command()
@_one_clear_error
def verdicts(
    study: Study,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Judge by what is there and name what is missing.")] = False,
    margin: Annotated[float, typer.Option(help="Points of accuracy within which two are 'about as much'.")] = 1.0,
    undertrained: Annotated[int, typer.Option(help="Most examples of a starting point that is undertrained.")] = 20_000,
    cost_per_seed: CostPerSeed = None,
    json: Annotated[
        bool, typer.Option("--json", help="All the numbers, subcases and sensitivities too, for programs.")
    ] = False,
) -> None:
    """Judge the paper's claims by a study: supported, refuted, equivalent, or cannot tell and how many seeds it would take.

    blindsweep verdicts demo
    blindsweep verdicts mini --partial --cost-per-seed 12.5
    """
    import json as js

    from analysis.claims import load_evidence
    from analysis.terminal import print_verdicts, verdicts_json
    from analysis.verdicts import judge_evidence
    from sweep.loading import study_name
    from sweep.records import Store

    name = study_name(study)
    evidence = load_evidence(Store(store), name, partial=partial)
    found = judge_evidence(evidence, margin=margin / 100, undertrained=undertrained, cost_per_seed=cost_per_seed)
    if json:
        print(js.dumps(verdicts_json(name, found, evidence), indent=1, ensure_ascii=False))
        return
    print_verdicts(name, found)


@app.command()
@_one_clear_error
def power(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="A pilot: a study of two seeds or more.")] = None,
    store: StoreUri = DEFAULT_STORE,
    partial: Annotated[bool, typer.Option(help="Use what is there of the pilot.")] = False,
    seed_sd: Annotated[
        float | None, typer.Option(help="Instead of a pilot: the standard deviation of one seed's difference, in points.")
    ] = None,
    item_error: Annotated[
        float, typer.Option(help="With --seed-sd: the standard error that the test items leave, in points.")
    ] = 0,
    cost_per_seed: CostPerSeed = None,
    json: Annotated[bool, typer.Option("--json", help="All the numbers, for programs.")] = False,
) -> None:
    """Say how many seeds a difference needs, how small a one some seeds detect, and what they cost.

    blindsweep power demo --cost-per-seed 12.5
    blindsweep power --seed-sd 17.5
    """
    import json as js

    if (study is None) == (seed_sd is None):
        raise UserError("give a STUDY to take variances from, or --seed-sd, and not both")
    from analysis.power import Variance, pilot
    from analysis.terminal import power_json, print_power

    variances, why_not = [], list[str]()
    if seed_sd is not None:
        variances = [Variance("given", (seed_sd / 100) ** 2, (item_error / 100) ** 2)]
    else:
        from analysis.claims import load_evidence
        from sweep.loading import study_name
        from sweep.records import Store

        assert study is not None
        variances, why_not = pilot(load_evidence(Store(store), study_name(study), partial=partial))
    if json:
        print(js.dumps(power_json(variances, why_not, cost_per_seed), indent=1, ensure_ascii=False))
        return
    print_power(variances, why_not, cost_per_seed)


@app.command()
@_one_clear_error
def audit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Pairs: .parquet, .csv, .tsv, .jsonl, or a dataset's folder.")],
    reference: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with these pairs: the original data.")] = None,
    generator_training: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Count copies of these pairs: what the generator was trained on.")
    ] = None,
    entailment: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="A label that means entailment; may be repeated. [default: entailment]"),
    ] = None,
    premise: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: premise, sentence1, …]")] = None,
    hypothesis: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: hypothesis, sentence2, …]")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: label, gold_label, …]")] = None,
    parse: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Bracketed parses of the premises, for the constituent heuristic."),
    ] = None,
    heuristic: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:NAME", help="A heuristic of your own, beside the built-in ones; may be repeated."),
    ] = None,
    margin: Annotated[float, typer.Option(help="Odds ratios that differ by at most this factor count as the same.")] = 1.25,
    seed: Annotated[int, typer.Option(help="Draws the samples.")] = 0,
    processes: Annotated[int, typer.Option(min=1, max=2, help="Processes that measure.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Folder of the page. [default: ./audit-NAME]")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All the numbers, for programs; - prints them.")
    ] = None,
) -> None:
    """Say what a file of labelled sentence pairs teaches besides its task. Needs no GPU and no study.

    Size and labels; duplicates and near-duplicates; copies of the generator's training data; whether lexical overlap,
    subsequence and constituent go with entailment, and more so than in a reference; how well the hypothesis alone tells the
    label; variety; samples. Every number has its interval, and where that is too wide the verdict is 'cannot tell'.

        blindsweep audit pool.parquet --reference multinli_1.0_train.jsonl
        blindsweep audit pairs.csv --premise text_a --hypothesis text_b --label gold --entailment 1
        blindsweep audit my_dataset/ --generator-training train.parquet --json audit.json
    """
    from analysis.audit import AuditSettings, audit_json, audit_pairs
    from analysis.audit_input import ColumnNames
    from analysis.audit_page import summary_lines, write_page

    settings = AuditSettings(
        columns=ColumnNames(premise, hypothesis, label, parse),
        entailment=tuple(entailment or ()),
        reference=str(reference) if reference else None,
        generator_training=str(generator_training) if generator_training else None,
        heuristics=tuple(heuristic or ()),
        margin=margin,
        seed=seed,
        processes=processes,
    )
    result = audit_pairs(file, settings)
    page = write_page(result, output or Path(f"audit-{result.name}"))
    if str(json) == "-":
        print(audit_json(result))
        return
    print("\n".join(summary_lines(result)))
    if json:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(audit_json(result) + "\n", encoding="utf-8")
        print(f"numbers: {json}")
    print(f"page: {page} ({result.seconds:.1f} s)")


@app.command()
@_one_clear_error
def ui(
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow on the studies of a store, for this machine only."""
    from sweep.records import Store
    from sweep.tracking import comparisons, default_tracking_uri

    uri = tracking_uri or default_tracking_uri(Store(store))
    if uri.startswith(("http://", "https://")):
        print(f"MLflow already runs at {uri}")
        return
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no MLflow database {uri}; run a study first, or build it with `blindsweep reindex`")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Else about ten processes more, of 240 MB each, for evaluating chat applications.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    print(f"MLflow at http://127.0.0.1:{port} (Ctrl-C ends it)")
    for name, link in comparisons(uri).items():
        print(f"  compare kinds of {name}: http://127.0.0.1:{port}/{link}")
    sys.stdout.flush()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, *address]
    os.execv(sys.executable, command)


@app.command()
@_one_clear_error
def reindex(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, all in the store.")] = None,
    store: StoreUri = DEFAULT_STORE,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuild MLflow's runs from the records in the store."""
    from sweep.loading import study_name
    from sweep.records import Store
    from sweep.study import reindex as rebuild
    from sweep.tracking import default_tracking_uri

    where = Store(store)
    uri = tracking_uri or default_tracking_uri(where)
    for name, count in rebuild(where, [study_name(study)] if study else where.studies(), uri).items():
        print(f"{name}: {count} artifacts in {uri}")


@app.command()
@_one_clear_error
def experiments() -> None:
    """List the built-in experiments and their parameters."""
    import inspect

    from sweep.loading import builtin_experiments

    for name, function in builtin_experiments().items():
        print(f"{name}: {(inspect.getdoc(function) or '').splitlines()[0]}")
        for parameter in inspect.signature(function).parameters.values():
            default = "required" if parameter.default is parameter.empty else f"default {parameter.default!r}"
            annotation = getattr(parameter.annotation, "__name__", parameter.annotation)
            kind = str(parameter.annotation) if "[" in str(parameter.annotation) else annotation
            print(f"    -p {parameter.name}=...  {kind}, {default}")


@data.command()
@_one_clear_error
def fetch(
    to: Annotated[Path, typer.Option(help="Folder that is to hold everything.")] = Path("data"),
    copies: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="Take the files, or multinli_1.0.zip, from here; nothing is downloaded."),
    ] = None,
) -> None:
    """Get MultiNLI 1.0 (227 MB) and HANS (15 MB) from their official places, and verify them.

    The folder then holds the official files, the same as Parquet, and origin.json, which says where each file is from,
    its sha256, and whether it is the complete official one. What is there is not downloaded again, and a broken
    download goes on where it ended.

        blindsweep data fetch
        blindsweep data fetch --from /mnt/corpora --to data
    """
    from pipelines.downloads import fetch_nli_data
    from pipelines.identity import MARKS
    from pipelines.sources import NUM_TRAINING_ROWS
    from sweep.progress import Transfers

    with Transfers() as transfers:
        origin = fetch_nli_data(to, copies=copies, say=transfers.say, on_bytes=transfers)
    metrics = origin["parquet"]["metrics"]
    print(f"{to}: {metrics['train/num_examples']:,} training rows; all of MultiNLI gives {NUM_TRAINING_ROWS:,}")
    for mark in metrics.get(MARKS, ()):
        print(f"whatever is built from it is marked: {mark}")
    print(f"next: blindsweep run mini -p data={to} -p model=CHECKPOINT")


def main() -> None:
    """Entry point of the `blindsweep` command."""
    app()


if __name__ == "__main__":
    main()
