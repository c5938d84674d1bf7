"""The table of figures that estimates are made from, and how fast a GPU is reckoned to be by it. Pure.

read_table().rate("evaluate", 0, gpu, num_parameters).tokens_per_s
"""

import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import UserError

TABLE_FILE = Path(__file__).with_name("throughputs.toml")
FLOPS_PER_PARAMETER = {"finetune_full": 6, "finetune_lora": 4, "generate": 2, "evaluate": 2}
"""Floating-point operations for a token and a parameter: 2 forward, 2 for the gradient of what flows back, 2 for that of
the weights, which an adapter hardly has."""


class NoEstimate(UserError):
    """Nothing can be said about a study's costs, for this reason; everything else about it can."""


@dataclass(frozen=True)
class Gpu:
    """Dense bf16 peak, memory bandwidth, and the price in US dollars of one hour of one GPU, on demand and spot."""

    name: str
    bf16_tflops: float
    memory_tb_per_s: float
    price: float
    spot_price: float
    source: str


@dataclass(frozen=True)
class Throughput:
    """Examples a second of one whole GPU; `batch_size` is its part of an optimizer step, 0 where there is none.

    Where `together` models are finetuned at once, each with its own batch, the examples of all are counted.
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


@dataclass(frozen=True)
class Constant:
    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one GPU, the rows it comes from, and how they were scaled ("" if they fit as they are).

    `shared` is the part of that time, from 0 to 1, that models which are finetuned at once take once and not each.
    """

    tokens_per_s: float
    rows: tuple[Throughput, ...]
    scaled: str
    shared: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """The figures that estimates are made from. Every row has its source."""

    gpus: Mapping[str, Gpu]
    throughputs: tuple[Throughput, ...]
    constants: Mapping[str, Constant]

    def __getitem__(self, constant: str) -> float:
        if constant not in self.constants:
            raise NoEstimate(f"{TABLE_FILE} has no constant {constant!r}; add its row")
        return self.constants[constant].value

    def gpu(self, name: str, *, price: float | None = None, spot_price: float | None = None) -> Gpu:
        """The GPU called `name`, at other prices if given. Raises UserError for an unknown one or a price below 0."""
        if name not in self.gpus:
            raise UserError(
                f"gpu={name!r} has no row; there are {', '.join(self.gpus)}: choose one, or add its row to {TABLE_FILE}"
            )
        listed = self.gpus[name]
        given = replace(
            listed,
            price=listed.price if price is None else price,
            spot_price=listed.spot_price if spot_price is None else spot_price,
        )
        for field in ("price", "spot_price"):
            value = getattr(given, field)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{field}={value}: it is dollars for one hour of one GPU; give 0 or more")
        return given

    def rate(self, work: str, batch_size: float, gpu: Gpu, num_parameters: int) -> Rate:
        """The rate of `work` by one whole `gpu` on a model of `num_parameters`, with `batch_size` examples an optimizer step.

        The rows of the nearest number of parameters tell it, of the same GPU if it has any. Between two batch
        sizes, the seconds of a step are interpolated; below the smallest a step takes as long as at the
        smallest, above the largest an example takes as long as at the largest.
        """
        alone = [row for row in self.throughputs if row.together == 1]
        rows = [row for row in alone if row.work == work]
        if not rows:
            rows = [row for row in alone if row.work.split("_")[0] == work.split("_")[0]]
        if not rows:
            raise NoEstimate(f"no row of {TABLE_FILE} tells how fast {work!r} is; add one")

        def distance(row: Throughput) -> tuple[float, bool]:
            return abs(math.log(row.parameters / num_parameters)), row.gpu != gpu.name

        nearest = min(rows, key=distance)
        rows = sorted((row for row in rows if distance(row) == distance(nearest)), key=lambda row: row.batch_size)
        tokens_per_s, used = _at_batch_size(rows, batch_size)
        row, notes = used[0], [f"interpolated to batch {batch_size:g}"] if len(used) > 1 else []
        at_once = [
            several
            for several in self.throughputs
            if several.together > 1 and several.work == row.work and distance(several) == distance(row)
        ]
        shared = 0.0
        if at_once:
            nearest_batch = min(at_once, key=lambda several: abs(several.batch_size - batch_size))
            step_s = batch_size * row.tokens_per_example / tokens_per_s
            shared = min(1.0, _shared_seconds(rows, nearest_batch) / step_s)
            used = [*used, nearest_batch]
        if row.gpu != gpu.name:
            theirs = self.gpus[row.gpu]
            if work == "generate":
                tokens_per_s *= gpu.memory_tb_per_s / theirs.memory_tb_per_s
                notes.append(f"scaled from {row.gpu} by memory bandwidth")
            else:
                tokens_per_s *= gpu.bf16_tflops / theirs.bf16_tflops
                notes.append(f"scaled from {row.gpu} by bf16 peak")
        if row.parameters != num_parameters or row.work != work:
            tokens_per_s *= FLOPS_PER_PARAMETER[row.work] * row.parameters / (FLOPS_PER_PARAMETER[work] * num_parameters)
            what = row.work if row.work != work else row.model
            notes.append(f"scaled from {what} ({row.parameters / 1e6:,.0f} M parameters) by operations a token")
        return Rate(tokens_per_s, tuple(used), "; ".join(notes), shared)


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
    quick_step = lower.batch_size / lower.examples_per_s
    seconds = quick_step + share * (slow_step - quick_step)
    return batch_size / seconds * lower.tokens_per_example, [lower, upper]


def _shared_seconds(rows: Sequence[Throughput], several: Throughput) -> float:
    """Seconds of an optimizer step that models finetuned at once pay once: a pass takes so much and the same for each model.

    Reckoned from a step of one model, by its `rows`, and one of `several`, at the batch size of these; at least 0.
    """
    tokens_per_s, used = _at_batch_size(rows, several.batch_size)
    one_s = several.batch_size * used[0].tokens_per_example / tokens_per_s
    all_s = several.together * several.batch_size / several.examples_per_s
    return max(0.0, one_s - (all_s - one_s) / (several.together - 1))


@functools.cache
def read_table(path: Path = TABLE_FILE) -> CostTable:
    """Read the table. Raises UserError for two rows of the same thing: which one counts would be chance."""
    content = tomllib.loads(path.read_text())
    gpus = [Gpu(**row) for row in content["gpu"]]
    constants = [Constant(**row) for row in content["constant"]]
    throughputs = [Throughput(**row) for row in content["throughput"]]
    keys = [gpu.name for gpu in gpus] + [constant.name for constant in constants]
    keys += [f"{row.gpu}, {row.work}, {row.model}, batch {row.batch_size}, {row.together} together" for row in throughputs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"{path} has two rows of {'; '.join(twice)}: keep one of each")
    return CostTable({gpu.name: gpu for gpu in gpus}, tuple(throughputs), {constant.name: constant for constant in constants})
