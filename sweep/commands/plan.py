"""`blindsweep plan`: shows what a run would build and what it would cost."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.commands.options import (
    DEFAULT_GPU,
    DEFAULT_STORE,
    ExperimentName,
    Json,
    OnlyPiece,
    OtherName,
    Parameters,
    Price,
    SeedsAtOnce,
    SpotPrice,
    StoreUri,
    Throughputs,
    positive,
)
from sweep.graph.records import Store
from sweep.plan.throughputs import CostTable, Gpu, read_table

if TYPE_CHECKING:
    from sweep.graph.pieces import Only
    from sweep.plan.plan import Planned
    from sweep.study.loading import Loaded

COMPARED_NUMBERS_OF_GPUS = (1, 2, 4, 8)


def plan(
    experiment: ExperimentName,
    parameters: Parameters = None,
    name: OtherName = None,
    only: OnlyPiece = None,
    store: StoreUri = DEFAULT_STORE,
    all_steps: Annotated[bool, typer.Option("--all", help="List every step, not only counts and reasons.")] = False,
    gpu: Annotated[str, typer.Option(help="What estimates are for: a GPU with a row in --sources.")] = DEFAULT_GPU,
    max_gpus: Annotated[float, typer.Option(callback=positive, help="GPUs that the wall time is reckoned for.")] = 8,
    num_gpus: Annotated[float | None, typer.Option(callback=positive, hidden=True, help="What --max-gpus was called.")] = None,
    seeds_at_once: SeedsAtOnce = None,
    price: Price = None,
    spot_price: SpotPrice = None,
    throughputs: Throughputs = None,
    sources: Annotated[
        bool, typer.Option(help="List the figures that the estimates are made from, and their sources.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what `run` would build and what it would cost, what is there already, and which changed field is the reason.

    GPU-hours, money, tokens, disk and wall time are estimates from a table of measured throughputs; for a GPU that
    none was measured on they are scaled by the makers' data sheets. No GPU is touched.

        blindsweep plan demo
        blindsweep plan mini --gpu h100 --price 2.5 --max-gpus 4
    """
    from sweep.graph.pieces import parse_only
    from sweep.study.loading import load_experiment

    loaded, piece = load_experiment(experiment, parameters or [], name=name), parse_only(only) if only else None
    table = read_table(throughputs)
    priced = table.gpu(gpu, price=price, spot_price=spot_price)
    show_plan(
        loaded,
        Store(store),
        table,
        lambda _: priced,
        max_gpus if num_gpus is None else num_gpus,
        all_steps=all_steps,
        sources=sources,
        as_json=json,
        only=piece,
        seeds_at_once=seeds_at_once,
    )


def show_plan(
    loaded: "Loaded",
    store: Store,
    table: CostTable,
    find_gpu: "Callable[[Sequence[Planned]], Gpu]",
    num_gpus: float | None,
    *,
    all_steps: bool = False,
    sources: bool = False,
    as_json: bool = False,
    only: "Only | None" = None,
    seeds_at_once: int | None = None,
) -> None:
    """Print the plan of an experiment, its costs on `num_gpus` (None: as many as its largest step asks for) beside others."""
    import json

    from sweep.plan.page import plan_json, print_plan, print_sources
    from sweep.plan.plan import plan_study
    from sweep.plan.replaced import replaced_line
    from sweep.study.grid import build_grid
    from sweep.study.inputs import missing_inputs

    others = COMPARED_NUMBERS_OF_GPUS
    plan = plan_study(
        loaded.experiment, store, table, find_gpu, num_gpus, others=others, only=only, seeds_at_once=seeds_at_once
    )
    if as_json:
        print(json.dumps(plan_json(plan), indent=1, ensure_ascii=False))
        return
    print_plan(plan, all_steps=all_steps)
    whole = [planned.step for planned in plan.steps] if only is None else build_grid(loaded.experiment)
    # What is not here yet has other fingerprints than the run will give it.
    if not missing_inputs(loaded.experiment) and (line := replaced_line(loaded, whole, plan.earlier)):
        print(line)
    if sources:
        print_sources(table, plan.costs)
