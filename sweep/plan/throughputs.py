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

    Where `together` models are finetuned at once, each with its own batch, the examples of all are counted. `base_precision` is
    what the frozen base is multiplied in. `share_prefix`, of a finetuning: what all prompts begin with was computed once a
    batch; `tokens_per_example` counts it in each example all the same.
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


@dataclass(frozen=True)
class Constant:
    name: str
    value: float
    unit: str
    source: str


SECTIONS: Mapping[str, Any] = {"gpu": Gpu, "throughput": Throughput, "constant": Constant}
MAY_BE_EMPTY = ("price", "spot_price", "value", "unit", "batch_size", "accelerator_type", "memory_gb", "compute_capability")
"""Keys whose number may be 0 and whose text may be empty."""


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one GPU, the rows it comes from, and how they were scaled ("" if they fit as they are).

    `shared` is the part of that time, from 0 to 1, that models which are finetuned at once take once and not each.
    `measured_on` names the GPU of the rows if it is another, so that this one's rate is reckoned from data sheets; else "".
    """

    tokens_per_s: float
    rows: tuple[Throughput, ...]
    scaled: str
    shared: float = 0.0
    measured_on: str = ""


@dataclass(frozen=True)
class CostTable:
    """The figures that estimates are made from. Every row has its source."""

    gpus: Mapping[str, Gpu]
    throughputs: tuple[Throughput, ...]
    constants: Mapping[str, Constant]

    def __getitem__(self, constant: str) -> float:
        if constant not in self.constants:
            raise NoEstimate(f"the table has no constant {constant!r}; {ADD_ROWS}")
        return self.constants[constant].value

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
    ) -> Rate:
        """The rate of `work` by one whole `gpu` on a model of `num_parameters`, with `batch_size` examples an optimizer step.

        What was not measured with the prompts' beginning shared, or not, as `share_prefix` says, is scaled by the tokens that
        are computed for an example. What was not with a base in `base_precision` is reckoned as with one in bfloat16, which is
        no quicker. Of two such rows the quicker one counts, and the rate says what was done.

        The rows of the nearest number of parameters tell it, of the same GPU if it has any. Between two batch sizes, a step's
        seconds are interpolated; below the smallest a step takes as long as at the smallest, above the largest an example takes
        as long as at the largest.
        """
        throughputs = self._of_setting(base_precision, share_prefix)
        alone = [row for row in throughputs if row.together == 1]
        rows = [row for row in alone if row.work == work]
        if not rows:
            rows = [row for row in alone if row.work.split("_")[0] == work.split("_")[0]]
        if not rows:
            raise NoEstimate(f"no row of the table tells how fast {work!r} is; {ADD_ROWS}")

        def distance(row: Throughput) -> tuple[float, bool]:
            return abs(math.log(row.parameters / num_parameters)), row.gpu != gpu.name

        nearest = min(rows, key=distance)
        # Of one GPU only: others may be as near.
        rows = [row for row in rows if distance(row) == distance(nearest) and row.gpu == nearest.gpu]
        rows.sort(key=lambda row: row.batch_size)
        tokens_per_s, used = _at_batch_size(rows, batch_size)
        row, notes = used[0], [f"interpolated to batch {batch_size:g}"] if len(used) > 1 else []
        at_once = [
            several
            for several in throughputs
            if (several.together > 1 and several.work == row.work and several.gpu == row.gpu)
            and several.parameters == row.parameters
        ]
        shared = 0.0
        if at_once:
            nearest_batch = min(at_once, key=lambda several: abs(several.batch_size - batch_size))
            step_s = batch_size * nearest_batch.tokens_per_example / tokens_per_s
            shared = min(1.0, _shared_seconds(rows, nearest_batch) / step_s)
            used = [*used, nearest_batch]
        if others := [each for each in used if _has_prefix(each) and each.share_prefix != share_prefix]:
            times = ", ".join(f"{factor:.2f} times" for factor in dict.fromkeys(map(self._scale, others)))
            setting = "with" if share_prefix else "without"
            notes.append(f"not measured {setting} a shared prefix: scaled by the tokens of an example, {times}")
        if any(each.base_precision != base_precision for each in used):
            notes.append(f"not measured in {base_precision}: in part or wholly as in {BFLOAT16}")
        measured_on = row.gpu if row.gpu != gpu.name else ""
        if measured_on:
            factor, how = by_data_sheet(work, gpu, self.gpus[measured_on])
            tokens_per_s *= factor
            notes.append(how)
        if row.parameters != num_parameters or row.work != work:
            tokens_per_s *= FLOPS_PER_PARAMETER[row.work] * row.parameters / (FLOPS_PER_PARAMETER[work] * num_parameters)
            what = row.work if row.work != work else row.model
            notes.append(f"scaled from {what} ({row.parameters / 1e6:,.0f} M parameters) by operations a token")
        return Rate(tokens_per_s, tuple(used), "; ".join(notes), shared, measured_on)

    def _of_setting(self, base_precision: str, share_prefix: bool) -> list[Throughput]:
        """Of each thing the row of that setting; else the quickest of those that stand in for it, at the rate that it gives."""
        best: dict[tuple[Any, ...], tuple[bool, float, Throughput]] = {}
        for row in self.throughputs:
            if row.base_precision not in (base_precision, BFLOAT16):
                continue
            is_scaled = _has_prefix(row) and row.share_prefix != share_prefix
            examples_per_s = row.examples_per_s * (self._scale(row) if is_scaled else 1)
            is_its_own = row.base_precision == base_precision and not is_scaled
            thing = row.gpu, row.work, row.parameters, row.batch_size, row.together
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
        return f"{row.gpu}, {row.work}, {row.model}, batch {row.batch_size}, {row.together} together{precision}{prefix}"
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
    shipped = _read_rows(TABLE_FILE)["constant"]
    for name in rows["constant"].keys() - shipped.keys():
        raise UserError(f"{own}: [[constant]] has name={name!r}, which no estimate reads; there are {', '.join(shipped)}")
