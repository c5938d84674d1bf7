"""docs/benchmarks.md from the results in benchmarks/results:

python -m benchmarks.page
"""

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import FORMAT, ROOT, ratio
from pipelines.errors import UserError

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
OURS = ("ours", "stage")
LEADING = re.compile(r"(ours|stage)(-gpus|_\d+)?")
"""Variants whose newest figures lead the page: the stage itself, on all GPUs, or with so many adapters."""
WIDTH = 120

INTRODUCTION = """\
# Benchmarks

Made by `python -m benchmarks.page` from the files in `benchmarks/results`; do not edit. First the newest figure of each kind
of work, then the runs that they come from. Of older runs, and runs of parts, there are the files alone; what was tried is in
[tried.md](../benchmarks/results/tried.md), figures of a model of 135 M parameters in [mini.md](mini.md), and what a run takes
beside its GPUs in [scale.md](scale.md).

Two figures are of the same work where benchmark, model, settings and device are the same. The number of examples or texts may
differ, which is how long a run measures, and so may the number of task models that are trained at once. *Beside the peer* is
the newest run of that work in which the peer ran, too: how many times better ours is, and both figures. A model goes by the
name of its folder: `base7` and `model` have Llama-2-7B's shape and random weights (`python -m benchmarks.base base7 --tokenizer
FOLDER`), `base7f` the same in FP8 (`--precision fp8`). `sources` is the folder of MultiNLI and HANS, or what is made of it.
"""
READING = """\
Each section is one run of one command, in which all variants did the same work on the same machine. A figure is the median of
its repeats, with the least and the most of them if there are several. *Ratio* is to the peer, above 1 where better than it.
*Of the limit* is how much is reached of what the hardware allows for the least work that gives the result. A run that was cut
off, by `--limit SECONDS` or a signal, says so: its figures are of what it had measured until then.
"""
Results = Mapping[str, Mapping[str, Any]]
"""Results by the names of their files."""


@dataclass(frozen=True)
class Measured:
    """A leading variant's figure in one run. `group` and `work` say in words what was done; `together` counts task models."""

    run: str
    date: str
    group: str
    work: str
    together: int | None
    figure: Mapping[str, Any]
    variant: str

    @property
    def median(self) -> float:
        return float(self.figure["variants"][self.variant]["median"])

    @property
    def peer(self) -> float | None:
        variant = self.figure["variants"].get(self.figure["peer"])
        return None if variant is None else float(variant["median"])


def main() -> None:
    results = {path.stem: read_result(path) for path in sorted(RESULTS.glob("*.json"))}
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


def render(results: Results) -> str:
    """The page in Markdown: the newest figures of each kind of work, then the runs that they come from."""
    newest = newest_figures(results)
    runs = {measured.run for pair in newest for measured in pair if measured is not None}
    shown = [name for name in _ordered(results) if name in runs]
    numbers = {name: place for place, name in enumerate(shown, 1)}
    groups = sorted({measured.group for measured, _ in newest}, key=_natural)
    tables = ["\n".join(_newest_table(group, [pair for pair in newest if pair[0].group == group], numbers)) for group in groups]
    links = "".join(f"[{place}]: #{name.lower()}\n" for name, place in numbers.items())
    sections = [_section(name, results[name]) for name in shown]
    return "\n".join([INTRODUCTION, *tables, links, "## The runs\n", READING, *sections])


def newest_figures(results: Results) -> list[tuple[Measured, Measured | None]]:
    """The newest figure of each kind of work, and the newest one in whose run the peer was measured as well."""
    newest: dict[tuple[str, str, str, str], tuple[Measured, Measured | None]] = {}
    for name in _ordered(results):
        if results[name]["benchmark"] == "scale":
            # It has a page of its own, docs/scale.md.
            continue
        for measured in _measured(name, results[name]):
            key = (measured.group, measured.work, measured.figure["name"], measured.figure["unit"])
            first, beside = newest.get(key, (measured, None))
            newest[key] = (first, beside or (measured if measured.peer is not None else None))
    return [newest[key] for key in sorted(newest, key=lambda key: _natural(key[1]))]


def _measured(name: str, result: Mapping[str, Any]) -> Iterator[Measured]:
    for figure in result["figures"]:
        for variant in filter(LEADING.fullmatch, figure["variants"]):
            group, work = work_of(result, figure["name"], variant)
            several = result["arguments"].get("together", 1)
            together = several if several > 1 and figure["name"] == "training" else None
            yield Measured(name, result["date"], group, work, together, figure, variant)


def work_of(result: Mapping[str, Any], figure: str, variant: str) -> tuple[str, str]:
    """The work in words: what the runs of a table have in common, and the settings of this one.

    Figures for which both read the same are of the same work.
    """
    arguments, hardware = result["arguments"], result["hardware"]
    gpus = hardware["gpus"]
    device = gpus[0].partition(",")[0] if gpus else f"{hardware['num_cpus']} cores of {hardware['cpu']}"
    on_gpus = [f"{len(gpus)} GPUs"] if variant.endswith("-gpus") else []
    common = [_title(result["benchmark"])]
    settings: list[str] = []
    match result["benchmark"]:
        case "task_model":
            common += [arguments["base"], arguments["method"]]
            if figure == "evaluation":
                settings = [" and ".join(arguments["evaluation_sets"])]
            else:
                settings = [
                    f"batches of {arguments['batch_size']}",
                    "one alone" if arguments["together"] == 1 else "several at once",
                    f"passes of {arguments['tokens']:,} tokens",
                    *([] if arguments["share_prefix"] else ["no shared prefix"]),
                ]
        case "generation":
            precision = {"none": arguments["dtype"], "fp8": "FP8"}[arguments.get("quantization", "none")]
            common += [arguments["model"], precision, f"up to {arguments['max_new_tokens']} tokens a text"]
            if arguments["max_num_seqs"]:
                settings = [f"{arguments['max_num_seqs']:,} sequences at a time"]
        case "finetunings":
            common += [arguments["model"] or "a tiny Llama"]
            settings = [f"each of {arguments['size']:,} examples"]
        case "orchestration":
            settings = [f"{arguments['concurrent']} at a time"]
        case "stages":
            common += [arguments["experiment"]]
            settings = [", ".join(arguments["parameters"])]
        case "audit":
            settings = [f"{arguments['rows']:,} rows", f"{arguments['reference_rows']:,} of a reference"]
        case "decode_attention":
            settings = [f"{arguments['tokens']} tokens a text", f"{arguments['max_num_seqs']:,} sequences at a time"]
        case "adapters":
            settings = [f"rank {arguments['rank']}", f"adapters: {variant.removeprefix('ours_')}"]
    return ", ".join([*common, device]), ", ".join([*settings, *on_gpus]) or "the stage's settings"


def _newest_table(group: str, pairs: Sequence[tuple[Measured, Measured | None]], numbers: Mapping[str, int]) -> list[str]:
    """A table of one group. Links are by number, so that its lines stay short."""
    lines = [
        f"## {group}",
        "",
        "| figure | work | newest | target | run | beside the peer |",
        "|---|---|---|---|---|---|",
    ]
    for measured, beside in pairs:
        cells = [
            measured.figure["name"],
            measured.work,
            f"{number(measured.median)} {measured.figure['unit']}"
            + (f", {measured.together} at once" if measured.together else ""),
            "" if measured.figure["target"] is None else _target(measured.figure, measured.median),
            _link(measured, numbers),
            ""
            if beside is None
            else _beside(beside) + ", " + ("same run" if beside.run == measured.run else _link(beside, numbers)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _link(measured: Measured, numbers: Mapping[str, int]) -> str:
    return f"[{measured.date[:10]}][{numbers[measured.run]}]"


def _beside(measured: Measured) -> str:
    times = ratio(measured.median, measured.peer, lower_is_better=measured.figure["lower_is_better"])
    return f"{times:.2f} times ({number(measured.median)}; {measured.figure['peer']} {number(measured.peer or 0)})"


def _section(name: str, result: Mapping[str, Any]) -> str:
    hardware = result["hardware"]
    gpus = ", ".join(f"{count} × {gpu}" for gpu, count in Counter(hardware["gpus"]).items()) or "no GPU"
    commit = result["git"].get("commit", "unknown")[:12] + (" with changes" if result["git"].get("dirty") else "")
    versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    notes = [text for text in (result["note"], result.get("cut_off")) if text]
    note = "".join(f"{text[0].upper()}{text[1:]}. " for text in notes)
    lines = [
        f"### {name}",
        "",
        f"{_title(result['benchmark'])}, {result['date'][:10]}: [{name}.json](../benchmarks/results/{name}.json)",
        "",
        "```",
        *_wrapped(result["command"], indent="    ", end=" \\"),
        "```",
        "",
        *_wrapped(
            f"{gpus}; {hardware['num_cpus']} CPU cores ({hardware['cpu']}), {hardware['memory_gib']:g} GiB. {note}"
            f"Commit {commit}. {versions}."
        ),
        "",
        "| figure | variant | median | ratio | of the limit | target |",
        "|---|---|---|---|---|---|",
        *(_row(figure, variant) for figure in result["figures"] for variant in figure["variants"]),
        "",
    ]
    limits = [line for figure in result["figures"] if figure["roofline"] for line in _wrapped(_limit(figure), indent="  ")]
    return "\n".join([*lines, *([*limits, ""] if limits else [])])


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
    """A figure's bound in words: from which limits, and what is counted."""
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


def _title(benchmark: str) -> str:
    return benchmark.replace("_", " ").capitalize()


def _ordered(results: Results) -> list[str]:
    """Names of the runs: benchmarks by name, the newest run of each first."""
    newest_first = sorted(results, key=lambda name: results[name]["date"], reverse=True)
    return sorted(newest_first, key=lambda name: results[name]["benchmark"])


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts numbers within a text by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _wrapped(text: str, *, indent: str = "", end: str = "") -> Sequence[str]:
    """Lines of a paragraph; `end` closes all but the last."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [*(line + end for line in lines[:-1]), lines[-1]]


if __name__ == "__main__":
    main()
