"""`blindsweep audit`: what a file of labelled sentence pairs teaches besides its task."""

from pathlib import Path
from typing import Annotated

import typer


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
    from analysis.audit.audit import AuditSettings, audit_json, audit_pairs
    from analysis.audit.columns import ColumnNames
    from analysis.audit.page import summary_lines, write_page

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
