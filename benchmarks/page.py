"""docs/benchmarks.md from the results in benchmarks/results:

python -m benchmarks.page
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import FORMAT, ROOT
from pipelines.errors import UserError

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
OURS = ("ours", "stage")
INTRODUCTION = """\
# Benchmarks

Made by `python -m benchmarks.page` from the files in `benchmarks/results`; do not edit. Each table is one run of one command,
in which all variants did the same work on the same machine. A figure is the median of its repeats, with the least and the most
of them if there are several. *Ratio* is to the peer, above 1 where better than it. *Of the limit* is how much is reached of
what the hardware allows for the least work that gives the result. Earlier figures are in [mini.md](mini.md).
"""


def main() -> None:
    results = [read_result(path) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(render(results))
    print(f"{PAGE.relative_to(ROOT)}: {len(results)} results")


def read_result(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is no result of this form."""
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); run the benchmark again, or remove the file") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise UserError(f"{path} is not a result of format {FORMAT}; run the benchmark again, or remove the file")
    return result


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The page, in Markdown: benchmarks by name, the newest result of each first."""
    newest_first = sorted(results, key=lambda result: result["date"], reverse=True)
    ordered = sorted(newest_first, key=lambda result: result["benchmark"])
    return "\n".join([INTRODUCTION, *(_section(result) for result in ordered)])


def _section(result: Mapping[str, Any]) -> str:
    hardware = result["hardware"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    commit = result["git"].get("commit", "unknown")[:12] + (" with changes" if result["git"].get("dirty") else "")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"## {result['benchmark'].replace('_', ' ').capitalize()}, {result['date'][:10]}",
        "",
        "```",
        result["command"],
        "```",
        "",
        f"{gpus}; {hardware['num_cpus']} CPU cores ({hardware['cpu']}), {hardware['memory_gib']:g} GiB. "
        + (f"{result['note'][0].upper()}{result['note'][1:]}. " if result["note"] else "")
        + f"Commit {commit}. {versions}.",
        "",
        "| figure | variant | median | ratio | of the limit | target |",
        "|---|---|---|---|---|---|",
    ]
    for figure in result["figures"]:
        lines += [_row(figure, name) for name in figure["variants"]]
    limits = [_limit(figure) for figure in result["figures"] if figure["roofline"]]
    return "\n".join([*lines, "", *([*limits, ""] if limits else [])])


def _row(figure: Mapping[str, Any], name: str) -> str:
    variant = figure["variants"][name]
    values = variant["values"]
    spread = f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""
    is_peer = name == figure["peer"]
    cells = [
        figure["name"],
        f"{name} (peer)" if is_peer else name,
        f"{number(variant['median'])} {figure['unit']}{spread}",
        "" if is_peer or variant["ratio"] is None else f"{variant['ratio']:.2f}",
        "" if variant["fraction_of_limit"] is None else f"{variant['fraction_of_limit']:.0%}",
        "" if name not in OURS or figure["target"] is None else _target(figure, variant["median"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _target(figure: Mapping[str, Any], median: float) -> str:
    target = figure["target"]
    is_met = median <= target if figure["lower_is_better"] else median >= target
    return f"{number(target)} {figure['unit']}: {'met' if is_met else 'missed'}"


def _limit(figure: Mapping[str, Any]) -> str:
    """What bounds a figure, from which limits, and what is counted."""
    roof = figure["roofline"]
    work = "; ".join(
        f"{part['name']} {part['flops'] / 1e9:,.4g} GFLOP"
        + (f" and {part['bytes'] / 1e6:,.4g} MB" if part["bytes"] else "")
        + (f", bound by {part['bound']}" if part["bound"] else "")
        for part in roof["parts"]
    )
    limits = roof["limits"]
    limit = (
        "no limit is known for this hardware"
        if limits is None
        else f"the limit is {number(roof['limit'])} {figure['unit']}, at {limits['flop_per_s'] / 1e12:g} TFLOP/s and "
        f"{limits['byte_per_s'] / 1e12:g} TB/s ({limits['source']})"
    )
    return f"- **{figure['name']}**: {limit}. One item is {work} ({roof['counted']})."


def number(value: float) -> str:
    """Three significant digits, whole above 100."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
