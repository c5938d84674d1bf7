"""`blindsweep audit`: what a file of labelled texts teaches besides its task."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import UserError

if TYPE_CHECKING:
    from analysis.audit.audit import Audit, AuditSettings
    from analysis.corpus.scan import Report


def audit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Labelled texts: Parquet, CSV, JSONL, a dataset's folder, …")],
    reference: Annotated[str | None, typer.Option(metavar="FILE", help="Compare with these rows: the original data.")] = None,
    generator_training: Annotated[
        str | None, typer.Option(metavar="FILE", help="Count copies of these rows: what the generator was trained on.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A test set that the file must not give away; may be repeated."),
    ] = None,
    entailment: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="A label that means entailment; may be repeated. [default: entailment]"),
    ] = None,
    label_name: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=MEANING", help="What a label means, as 2=contradiction; may be repeated.")
    ] = None,
    keep_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="-1 or -, where it is a label and no mark of a missing one.")
    ] = None,
    premise: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: premise, sentence1, …]")] = None,
    hypothesis: Annotated[str | None, typer.Option(metavar="COLUMN", help="[default: hypothesis, sentence2, …]")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Single texts. [default: text, sentence, …]")] = None,
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
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Draws the samples.")] = 0,
    processes: Annotated[int, typer.Option(min=1, max=2, help="Processes that measure.")] = 2,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Read and compare on a running Ray cluster: auto, or HOST:PORT of its head."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the page. [default: ./audit-NAME]")] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All the numbers, for programs; - prints them.")
    ] = None,
) -> None:
    """Say what a file of labelled texts teaches besides its task. Needs no GPU and no study.

    Size and labels; duplicates and near-duplicates; copies of the generator's training data; whether lexical overlap,
    subsequence and constituent go with entailment, and more so than in a reference; how well the hypothesis alone tells the
    label; variety; samples. Every number has its interval, and where that is too wide the verdict is 'cannot tell'.

        blindsweep audit pool.parquet --reference multinli_1.0_train.jsonl
        blindsweep audit pairs.csv --premise text_a --hypothesis text_b --label gold --entailment 1
        blindsweep audit my_dataset/ --generator-training train.parquet --json audit.json
    """
    from analysis.audit.audit import AuditSettings, audit_json
    from analysis.audit.audit import audit as audit_texts
    from analysis.audit.page import summary_lines, write_page
    from analysis.corpus.columns import ColumnNames
    from sweep.run.progress import Work

    given = {"premise": premise, "hypothesis": hypothesis, "text": text, "label": label, "parse": parse}
    settings = AuditSettings(
        columns=ColumnNames(
            {name: column for name, column in given.items() if column is not None}, kept_labels=tuple(keep_label or ())
        ),
        entailment=tuple(entailment or ()),
        label_names=dict(_named(each, "--label-name", "LABEL=MEANING") for each in label_name or ()),
        reference=reference,
        generator_training=generator_training,
        tests=dict(_named(each, "--test", "NAME=FILE") if "=" in each else (Path(each).stem, each) for each in test or ()),
        heuristics=tuple(heuristic or ()),
        margin=margin,
        seed=seed,
        processes=processes,
    )
    with Work() as work:
        result = audit_texts(file, settings, work) if address is None else _on_cluster(address, file, settings, work)
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


def _on_cluster(address: str, file: str, settings: "AuditSettings", report: "Report") -> "Audit":
    import analysis
    from analysis.audit.audit import audit as audit_texts
    from sweep.run.session import joined
    from sweep.scan.on_ray import OnRay

    with joined(address, [analysis]):
        return audit_texts(file, settings, report, OnRay())


def _named(given: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = given.partition("=")
    if not (name and separator and value):
        raise UserError(f"{option} {given!r} is no {form}; give it that form")
    return name, value
