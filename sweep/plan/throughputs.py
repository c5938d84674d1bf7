"""The table of figures that estimates are made from, and how fast a GPU is reckoned to be by it. Pure.

read_table().rate("evaluate", 0, gpu, num_parameters).tokens_per_s
"""

import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipelines.errors import UserError

TABLE_FILE = Path(__file__).with_name("throughputs.toml")
FLOPS_PER_PARAMETER = {"finetune_full": 6, "finetune_lora": 4, "generate": 2, "evaluate": 2}
"""Floating-point operations for a token and a parameter: 2 forward, 2 for the gradient of what flows back, 2 for that of
the weights, which an adapter hardly has."""


BFLOAT16 = "bfloat16"
ADD_ROWS = "add its row to a file of your own and give that with --throughputs"


class NoEstimate(UserError):
    """Nothing can be said about a study's costs, for this reason; everything else about it can."""


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 peak, memory bandwidth, and the price in US dollars of one hour of one GPU, on demand and spot.

    A price is None where no source for it is at hand: then money is not reckoned. `accelerator_type` is what Ray calls the
    GPU, "" if that is the name in capitals. `memory_gb` is the card's memory, `compute_capability` NVIDIA's number for what it
    can do, 0 if unknown.
    """

    name: str
    bf16_tflops: float
    memory_tb_per_s: float
    source: str
    price: float | None = None
    spot_price: float | None = None
    accelerator_type: str = ""
    memory_gb: float = 0
    compute_capability: float = 0

    @property
    def memory_bytes(self) -> float:
        """The most that its memory can be: a data sheet's GB may be 2^30 bytes, of which the driver keeps some."""
        return self.memory_gb * 2**30


@dataclass(frozen=True)
class Throughput:
    """Examples a second of one whole GPU; `batch_size` is its part of an optimizer step, 0 where there is none.

    Where `together` models are finetuned at once, each with its own batch, the examples of all are counted, and so are those of
    all `processes` that shared the GPU. `base_precision` is what the frozen base is multiplied in. `share_prefix`, of a
    finetuning: what all prompts begin with was computed once a batch; `tokens_per_example` counts it in each example all the
    same. `head` is "classes" or "vocabulary" for a finetuning that was measured with such an output, "" for either.
    """

    gpu: str
    work: str
    model: str
    parameters: int
    examples_per_s: float
    tokens_per_example: float
    source: str
    batch_size: int = 0
    together: int = 1
    base_precision: str = BFLOAT16
    share_prefix: bool = True
    processes: int = 1
    head: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Of all processes together."""
        return self.examples_per_s * self.tokens_per_example


@dataclass(frozen=True)
class Constant:
    """A figure that is no rate. `parameters` is the size of the model that it is of, 0 where it is of any."""

    name: str
    value: float
    unit: str
    source: str
    parameters: int = 0


SECTIONS: Mapping[str, Any] = {"gpu": Gpu, "throughput": Throughput, "constant": Constant}
MAY_BE_EMPTY = ("price", "spot_price", "value", "unit", "batch_size", "accelerator_type", "memory_gb", "compute_capability")
"""Keys whose number may be 0 and whose text may be empty."""
SAME_SIZE = 0.001
"""The logarithm by which two numbers of parameters may differ that are of one model."""
HEADS = ("classes", "vocabulary")


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one process that has a GPU to itself, the rows it comes from, and how they were scaled ("" if they fit
    as they are).

    `shared` is the part of that time, from 0 to 1, that models which are finetuned at once take once and not each. `load` is
    the part of what the GPU can do, from 0 to 1, that this one process takes: where launches count, several get more out of it.
    `measured_on` names the GPU of the rows if it is another, so that this one's rate is reckoned from data sheets; else "".
    """

    tokens_per_s: float
    rows: tuple[Throughput, ...]
    scaled: str
    shared: float = 0.0
    measured_on: str = ""
    load: float = 1.0


@dataclass(frozen=True)
class CostTable:
    """The figures that estimates are made from. Every row has its source."""

    gpus: Mapping[str, Gpu]
    throughputs: tuple[Throughput, ...]
    constants: Mapping[str, Constant]

    def __getitem__(self, constant: str) -> float:
        return self.constant(constant, 0)

    def constant(self, name: str, num_parameters: int) -> float:
        """The figure `name` for a model of `num_parameters`: between two sizes that have one interpolated over the logarithm of
        the size, beyond them the nearest one's. One that is of any size counts where no size has its own.
        """
        known = sorted((one for one in self.constants.values() if one.name == name), key=lambda one: one.parameters)
        if not known:
            raise NoEstimate(f"the table has no constant {name!r}; {ADD_ROWS}")
        known = [one for one in known if one.parameters] or known
        below = [one for one in known if one.parameters <= num_parameters]
        above = [one for one in known if one.parameters > num_parameters]
        if not (below and above):
            return (below[-1] if below else above[0]).value
        share = _share_between(below[-1].parameters, above[0].parameters, num_parameters)
        return below[-1].value + share * (above[0].value - below[-1].value)

    def gpu(self, name: str, *, price: float | None = None, spot_price: float | None = None) -> Gpu:
        """The GPU called `name`, at other prices if given. Raises UserError for an unknown one or a price below 0."""
        if name not in self.gpus:
            raise UserError(f"gpu={name!r} has no row; there are {', '.join(self.gpus)}: choose one with --gpu, or {ADD_ROWS}")
        listed = self.gpus[name]
        given = replace(
            listed,
            price=listed.price if price is None else price,
            spot_price=listed.spot_price if spot_price is None else spot_price,
        )
        for field in ("price", "spot_price"):
            value = getattr(given, field)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{field}={value}: it is dollars for one hour of one GPU; give 0 or more")
        return given

    def gpu_of_nodes(self, accelerator_types: Collection[str]) -> str:
        """The name of the row for the GPUs of a cluster or machine, which are of these types in Ray's words.

        Raises NoEstimate, with the way out, if there is none, more than one, or one that has no row.
        """
        choose = f"name with --gpu what there is or will be ({', '.join(self.gpus)})"
        if not accelerator_types:
            raise NoEstimate(f"no node of the cluster says which GPU it has, as before the first GPU machine is up; {choose}")
        if len(accelerator_types) > 1:
            types = ", ".join(sorted(accelerator_types))
            raise NoEstimate(f"there are several kinds of GPU ({types}) and an estimate is for one; {choose}")
        (found,) = accelerator_types
        for gpu in self.gpus.values():
            if found.lower() == (gpu.accelerator_type or gpu.name).lower():
                return gpu.name
        raise NoEstimate(f"the GPUs are {found}, which has no row; {ADD_ROWS}, or name with --gpu what is like it")

    def rate(
        self,
        work: str,
        batch_size: float,
        gpu: Gpu,
        num_parameters: int,
        base_precision: str = BFLOAT16,
        share_prefix: bool = True,
        head: str = "",
    ) -> Rate:
        """The rate of `work` by one process on a whole `gpu`, of a model of `num_parameters`, with `batch_size` examples an
        optimizer step.

        What was not measured with the prompts' beginning shared, or not, as `share_prefix` says, is scaled by the tokens that
        are computed for an example. What was not with a base in `base_precision` is reckoned as with one in bfloat16, which is
        no quicker. Of two such rows the quicker one counts, and the rate says what was done. Of a size that was measured with
        this `head`, no other rows count, and else those that do not say which.

        Between two sizes that were measured, the logarithm of the rate is interpolated over that of the size: a small model's
        steps are launches more than operations. Below the smallest that line goes on. Above the largest, and where one size
        alone was measured, the rate goes by operations a token, from what several processes do in all if that was measured.
        Each size is told by rows of the same GPU, if it has any. A smaller model is taken to be at least as quick as a larger
        one. Between two batch sizes, a step's seconds are interpolated; below the smallest a step takes as long as at the
        smallest, above the largest an example takes as long as at the largest.
        """
        throughputs = self._of_setting(base_precision, share_prefix, head)
        alone = [row for row in throughputs if row.together == 1]
        rows = [row for row in alone if row.work == work]
        if not rows:
            rows = [row for row in alone if row.work.split("_")[0] == work.split("_")[0]]
        if not rows:
            raise NoEstimate(f"no row of the table tells how fast {work!r} is; {ADD_ROWS}")
        sizes = sorted({row.parameters for row in rows})
        # A plan leaves out biases, which make no other size.
        num_parameters = next((size for size in sizes if abs(math.log(size / num_parameters)) < SAME_SIZE), num_parameters)
        around = _around(sizes, num_parameters)
        found: dict[int, Rate] = {}
        least = 0.0
        for size in reversed(sizes[sizes.index(around[0]) :]):
            of_size = [row for row in rows if row.parameters == size]
            found[size] = self._of_size(of_size, throughputs, work, batch_size, gpu, base_precision, share_prefix, least)
            least = found[size].tokens_per_s
        rate = found[around[0]]
        if len(around) == 2:
            rate = _between(rate, found[around[1]], num_parameters)
        row = rate.rows[0]
        factor = FLOPS_PER_PARAMETER[row.work] / FLOPS_PER_PARAMETER[work]
        if len(around) == 1:
            factor *= row.parameters / num_parameters
        if factor == 1:
            return rate
        if num_parameters > row.parameters:
            # What several processes do is bound by operations; one may have been by launches, which a larger model is not.
            alike = [
                one for one in rows if (one.gpu, one.parameters, one.batch_size) == (row.gpu, row.parameters, row.batch_size)
            ]
            most = factor * max(1.0, *(one.tokens_per_s / row.tokens_per_s for one in alike))
            rate, factor = replace(rate, load=min(1.0, 1 / most) if most > factor else rate.load), min(1.0, most)
        what = row.work if row.work != work else row.model
        note = f"scaled from {what} ({row.parameters / 1e6:,.0f} M parameters) by operations a token"
        return replace(rate, tokens_per_s=rate.tokens_per_s * factor, scaled="; ".join(filter(None, (rate.scaled, note))))

    def _of_size(
        self,
        rows: Sequence[Throughput],
        throughputs: Sequence[Throughput],
        work: str,
        batch_size: float,
        gpu: Gpu,
        base_precision: str,
        share_prefix: bool,
        least: float,
    ) -> Rate:
        """The rate that `rows` of one size tell, of models alone, which is `least` at least; `throughputs` are all, those of
        several at once included.
        """
        nearest = next((row for row in rows if row.gpu == gpu.name), rows[0])
        # Of one GPU only: others may tell it as well.
        rows = [row for row in rows if row.gpu == nearest.gpu and row.work == nearest.work]
        alone = _of_one_process(rows)
        factor, how = (1.0, "") if nearest.gpu == gpu.name else by_data_sheet(work, gpu, self.gpus[nearest.gpu])
        if (quicker := least / factor / _at_batch_size(alone, batch_size)[0]) > 1:
            alone = [replace(row, examples_per_s=row.examples_per_s * quicker) for row in alone]
        tokens_per_s, used = _at_batch_size(alone, batch_size)
        row, notes = used[0], [f"interpolated to batch {batch_size:g}"] if len(used) > 1 else []
        if quicker > 1:
            notes.append("at least as quick as a larger model")
        at_once = [
            several
            for several in throughputs
            if (several.together > 1 and several.work == row.work and several.gpu == row.gpu)
            and several.parameters == row.parameters
        ]
        shared = 0.0
        # What the GPU does at most: of the same batch sizes, with company in the process or beside it.
        most = max(several.tokens_per_s for several in rows if several.batch_size in {one.batch_size for one in used})
        if at_once:
            nearest_batch = min(at_once, key=lambda several: abs(several.batch_size - batch_size))
            step_s = batch_size * nearest_batch.tokens_per_example / tokens_per_s
            shared = min(1.0, _shared_seconds(alone, nearest_batch) / step_s)
            most = max(most, nearest_batch.tokens_per_s)
            used = [*used, nearest_batch]
        load = min(1.0, tokens_per_s / most)
        if others := [each for each in used if _has_prefix(each) and each.share_prefix != share_prefix]:
            times = ", ".join(f"{factor:.2f} times" for factor in dict.fromkeys(map(self._scale, others)))
            setting = "with" if share_prefix else "without"
            notes.append(f"not measured {setting} a shared prefix: scaled by the tokens of an example, {times}")
        if any(each.base_precision != base_precision for each in used):
            notes.append(f"not measured in {base_precision}: in part or wholly as in {BFLOAT16}")
        measured_on = row.gpu if row.gpu != gpu.name else ""
        if measured_on:
            notes.append(how)
        return Rate(tokens_per_s * factor, tuple(used), "; ".join(notes), shared, measured_on, load)

    def _of_setting(self, base_precision: str, share_prefix: bool, head: str) -> list[Throughput]:
        """Of each thing the row of that setting; else the quickest of those that stand in for it, at the rate that it gives."""
        heads: dict[tuple[str, str, int], set[str]] = {}
        for row in self.throughputs:
            heads.setdefault((row.gpu, row.work, row.parameters), set()).add(row.head)
        best: dict[tuple[Any, ...], tuple[bool, float, Throughput]] = {}
        for row in self.throughputs:
            if row.base_precision not in (base_precision, BFLOAT16):
                continue
            measured = heads[row.gpu, row.work, row.parameters]
            if head and row.head != next((one for one in (head, "") if one in measured), row.head):
                continue
            is_scaled = _has_prefix(row) and row.share_prefix != share_prefix
            examples_per_s = row.examples_per_s * (self._scale(row) if is_scaled else 1)
            is_its_own = row.base_precision == base_precision and not is_scaled
            thing = row.gpu, row.work, row.parameters, row.batch_size, row.together, row.processes
            if thing not in best or (is_its_own, examples_per_s) > best[thing][:2]:
                best[thing] = is_its_own, examples_per_s, row
        return [replace(row, examples_per_s=examples_per_s) for _, examples_per_s, row in best.values()]

    def _scale(self, row: Throughput) -> float:
        """The rate of `row` with the other `share_prefix`, as a multiple: by the tokens that are computed for an example.

        Where the prompts' beginning is shared, a batch has it once.
        """
        whole = row.tokens_per_example
        shared = whole - self["tokens.template"] * (row.batch_size - 1) / row.batch_size
        return shared / whole if row.share_prefix else whole / shared


def _share_between(small: float, large: float, size: float) -> float:
    """How far `size` is from `small`, 0, to `large`, 1, on a scale of logarithms."""
    return math.log(size / small) / math.log(large / small)


def _around(sizes: Sequence[int], size: int) -> list[int]:
    """Of `sizes`, which are in order, the one that tells what holds for `size`, or the two on whose line it is."""
    below, above = [one for one in sizes if one < size], [one for one in sizes if one > size]
    if size in sizes or not above:
        return [size if size in sizes else below[-1]]
    return [below[-1], above[0]] if below else above[:2]


def _between(small: Rate, large: Rate, num_parameters: int) -> Rate:
    """The rate of a model of `num_parameters`, on the line through those of two others."""
    sizes = [rate.rows[0].parameters for rate in (small, large)]
    share = _share_between(sizes[0], sizes[1], num_parameters)
    how = "interpolated between" if 0 <= share <= 1 else "on the line through"
    models = " and ".join(
        f"{rate.rows[0].model} ({rate.rows[0].parameters / 1e6:,.0f} M parameters)" for rate in (small, large)
    )
    notes = [note for rate in (small, large) for note in rate.scaled.split("; ") if note]
    return Rate(
        small.tokens_per_s * (large.tokens_per_s / small.tokens_per_s) ** share,
        (*small.rows, *large.rows),
        "; ".join(dict.fromkeys((*notes, f"{how} {models}"))),
        min(1.0, max(0.0, small.shared + share * (large.shared - small.shared))),
        " and ".join(dict.fromkeys(filter(None, (small.measured_on, large.measured_on)))),
        min(1.0, max(0.0, small.load + share * (large.load - small.load))),
    )


def _of_one_process(rows: Sequence[Throughput]) -> list[Throughput]:
    """What one process does at least, by its batch size: beside others it is no quicker than alone."""
    best: dict[int, Throughput] = {}
    for row in rows:
        one = replace(row, examples_per_s=row.examples_per_s / row.processes)
        if row.batch_size not in best or one.tokens_per_s > best[row.batch_size].tokens_per_s:
            best[row.batch_size] = one
    return [best[batch_size] for batch_size in sorted(best)]


def _has_prefix(row: Throughput) -> bool:
    """Whether it is a setting of the row's work to share what prompts begin with; an evaluation always does."""
    return row.work.startswith("finetune")


def by_data_sheet(work: str, gpu: Gpu, measured: Gpu) -> tuple[float, str]:
    """The rate of `work` on `gpu` as a multiple of that on a `measured` one, reckoned from data sheets; and how, in words.

    It is scaled by the bound that binds: writing a text reads all weights and its cache for each token, so memory bandwidth;
    finetuning and evaluation are matrix products, so the dense bf16 peak. What a smaller memory costs is not in it: there a
    pass holds fewer texts.
    """
    if work == "generate":
        bound, unit, ours, theirs = "memory bandwidth", "TB/s", gpu.memory_tb_per_s, measured.memory_tb_per_s
    else:
        bound, unit, ours, theirs = "bf16 peak", "TFLOP/s", gpu.bf16_tflops, measured.bf16_tflops
    return ours / theirs, f"scaled from {measured.name} by {bound} (data sheets: {ours:g} against {theirs:g} {unit})"


def _at_batch_size(rows: Sequence[Throughput], batch_size: float) -> tuple[float, list[Throughput]]:
    """Tokens a second from rows of one model on one GPU, in the order of their batch sizes; and the rows used."""
    below = [row for row in rows if row.batch_size <= batch_size]
    above = [row for row in rows if row.batch_size > batch_size]
    if not above:
        return below[-1].examples_per_s * below[-1].tokens_per_example, below[-1:]
    upper = above[0]
    slow_step = upper.batch_size / upper.examples_per_s
    if not below:
        return batch_size / slow_step * upper.tokens_per_example, [upper]
    lower = below[-1]
    if lower.batch_size == batch_size:
        return lower.examples_per_s * lower.tokens_per_example, [lower]
    share = (batch_size - lower.batch_size) / (upper.batch_size - lower.batch_size)
    # Of examples as long as the upper row's.
    quick_step = lower.batch_size / lower.examples_per_s * upper.tokens_per_example / lower.tokens_per_example
    seconds = quick_step + share * (slow_step - quick_step)
    return batch_size / seconds * upper.tokens_per_example, [lower, upper]


def _shared_seconds(rows: Sequence[Throughput], several: Throughput) -> float:
    """Seconds of an optimizer step that models finetuned at once pay once: a pass takes so much and the same for each model.

    Reckoned from a step of one model, by its `rows`, and one of `several`, at the batch size and with the tokens of these; at
    least 0.
    """
    tokens_per_s, _ = _at_batch_size(rows, several.batch_size)
    one_s = several.batch_size * several.tokens_per_example / tokens_per_s
    all_s = several.together * several.batch_size / several.examples_per_s
    return max(0.0, one_s - (all_s - one_s) / (several.together - 1))


def read_table(own: Path | None = None) -> CostTable:
    """Read the shipped table and, if given, a user's `own`, whose rows take the place of those of the same thing.

    Raises UserError, with file, row, key, rule and way out, for a file that is no such table. Two rows of the same thing in one
    file are refused: which one counts would be chance.
    """
    rows = _read_rows(TABLE_FILE)
    if own is not None:
        for section, own_rows in _read_rows(own).items():
            if section == "constant":
                # Whatever sizes the shipped ones are of.
                names = {row.name for row in own_rows.values()}
                rows[section] = {key: row for key, row in rows[section].items() if row.name not in names}
            rows[section] |= own_rows
        _check_names(rows, own)
    return CostTable(rows["gpu"], tuple(rows["throughput"].values()), rows["constant"])


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of each section, by what they are of."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a table of figures, as {TABLE_FILE} is one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}); mend it: {TABLE_FILE} shows the form") from error
    for section in content.keys() - SECTIONS.keys():
        raise UserError(f"{path} has the section {section!r}, which no table has; there are {', '.join(SECTIONS)}: use those")
    rows: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for section in SECTIONS:
        written = content.get(section, [])
        if not (isinstance(written, list) and all(isinstance(row, dict) for row in written)):
            raise UserError(f"{path}: {section} is no list of rows; write each under [[{section}]]")
        for number, values in enumerate(written, 1):
            row = _read_row(section, values, f"{path}: [[{section}]] number {number}")
            key = _key(row)
            if key in rows[section]:
                raise UserError(f"{path} has two rows of {key}: keep one of each")
            rows[section][key] = row
    return rows


def _key(row: Gpu | Throughput | Constant) -> str:
    if isinstance(row, Throughput):
        precision = "" if row.base_precision == BFLOAT16 else f", {row.base_precision}"
        prefix = "" if row.share_prefix else ", no shared prefix"
        beside = f", {row.processes} processes" if row.processes > 1 else ""
        head = f", {row.head}" if row.head else ""
        what = f"{row.gpu}, {row.work}, {row.model}, batch {row.batch_size}, {row.together} together"
        return f"{what}{beside}{precision}{prefix}{head}"
    if isinstance(row, Constant) and row.parameters:
        return f"{row.name}, {row.parameters} parameters"
    return row.name


def _read_row(section: str, values: Mapping[str, Any], where: str) -> Any:
    """The row that `values` are. Raises UserError, which begins with `where`."""
    known = {field.name: field for field in fields(SECTIONS[section])}
    if unknown := sorted(values.keys() - known.keys()):
        raise UserError(f"{where} has the key {unknown[0]!r}, which no {section} has; its keys are {', '.join(known)}")
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING:
                raise UserError(f"{where} has no {name}, which every {section} needs; add it")
            continue
        value = values[name]
        if field.type is bool:
            if not isinstance(value, bool):
                raise UserError(f"{where}: {name}={value!r} has to be true or false; write one of them")
            continue
        if field.type is str:
            if not isinstance(value, str) or not (value.strip() or name in MAY_BE_EMPTY):
                raise UserError(f"{where}: {name}={value!r} has to be text that says something; write it in quotes")
            continue
        kinds, what = (int, "whole number") if field.type is int else ((int, float), "number")
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or (value == 0 and name not in MAY_BE_EMPTY):
            least = "0 or more" if name in MAY_BE_EMPTY else "above 0"
            raise UserError(f"{where}: {name}={value!r} has to be a {what}, {least}; write that, or leave the row out")
    if values.get("work", "evaluate") not in FLOPS_PER_PARAMETER:
        raise UserError(f"{where}: work={values['work']!r} is unknown; choose one of {', '.join(FLOPS_PER_PARAMETER)}")
    if values.get("head", HEADS[0]) not in HEADS:
        raise UserError(
            f"{where}: head={values['head']!r} is unknown; choose classes or vocabulary, or leave it out for either"
        )
    if section == "throughput" and bool(values.get("batch_size", 0)) != values["work"].startswith("finetune"):
        raise UserError(
            f"{where}: batch_size={values.get('batch_size', 0)} with work={values['work']!r}; a finetuning needs one above 0, "
            "other work has none"
        )
    return SECTIONS[section](**values)


def _check_names(rows: Mapping[str, Mapping[str, Any]], own: Path) -> None:
    """Raise UserError for a row of `own` that nothing would read."""
    for row in rows["throughput"].values():
        if row.gpu not in rows["gpu"]:
            raise UserError(
                f"{own}: [[throughput]] has gpu={row.gpu!r}, which has no row; there are {', '.join(rows['gpu'])}: "
                "choose one, or add a [[gpu]] of that name"
            )
    shipped = {row.name: row for row in _read_rows(TABLE_FILE)["constant"].values()}
    for name in {row.name for row in rows["constant"].values()} - shipped.keys():
        raise UserError(f"{own}: [[constant]] has name={name!r}, which no estimate reads; there are {', '.join(shipped)}")
