"""The prices that docs/speed.md quotes are the plan's."""

from pathlib import Path

import pytest

from pipelines.finetune.base_model import LLAMA_2_7B
from sweep.graph.records import Store
from sweep.plan.costs import estimate_costs, total
from sweep.plan.plan import cost_plan, make_plan
from sweep.plan.throughputs import CostTable, Throughput, read_table
from sweep.study.grid import build_grid
from sweep.study.loading import load_experiment

PAGE = Path(__file__).parents[3] / "docs" / "speed.md"
TEN = "seeds=0,1,2,3,4,5,6,7,8,9"
STUDIES = {
    "`paper`, one seed": ("paper", ()),
    "`paper`, ten seeds": ("paper", (TEN,)),
    "`paper`, ten seeds of five generators": ("paper", (TEN, "generators=5")),
    "`paper_fast`, one seed": ("paper_fast", ()),
    "`paper_fast`, ten seeds": ("paper_fast", (TEN,)),
}
FP8 = "base_precision=fp8"


def peers() -> CostTable:
    """The table with the peers' rates, which compute whole prompts and finetune one at a time."""
    table, model = read_table(), ("llama-2-7b", 6_738_415_616)
    rates = (("finetune_lora", 6.4, 77, 2), ("finetune_lora", 58, 77, 32), ("evaluate", 209, 77, 0), ("generate", 357, 58, 0))
    rows = (
        Throughput("h200", work, *model, per_s, tokens, "measured: a peer", size, share_prefix=False)
        for work, per_s, tokens, size in rates
    )
    return CostTable(table.gpus, tuple(rows), table.constants)


def paid(name: str, table: CostTable, *parameters: str) -> str:
    """GPU-hours and money, as cells."""
    gpu = table.gpu("h200")
    steps = build_grid(load_experiment(name, list(parameters)).experiment)
    hours = total(estimate_costs(steps, table, gpu, settings=LLAMA_2_7B).steps).gpu_hours
    assert gpu.price is not None
    return f"{hours:,.1f} | ${hours * gpu.price:,.0f}"


def on_eight(name: str, folder: Path, *parameters: str) -> str:
    """Hours on eight GPUs, as a cell."""
    table, store = read_table(), Store(folder)
    steps = build_grid(load_experiment(name, list(parameters)).experiment)
    costs = cost_plan(make_plan(steps, store, reasons=False), store, table, table.gpu("h200"), 8)
    return f"{costs.schedule.seconds / 3600:,.1f}"


@pytest.mark.parametrize(
    "study",
    [pytest.param(study, marks=pytest.mark.slow) if parameters else study for study, (_, parameters) in STUDIES.items()],
)
def test_a_quoted_price_is_the_plans(study: str, tmp_path: Path) -> None:
    name, parameters = STUDIES[study]
    table = read_table()
    cells = [study, paid(name, peers(), *parameters)] if name == "paper" else [study, "", ""]
    for more in ((), (FP8,)):
        cells += [paid(name, table, *parameters, *more), on_eight(name, tmp_path, *parameters, *more)]
    row = f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |")
    assert row in PAGE.read_text().splitlines(), f"the plan says: {row}"


def test_what_a_seed_of_the_paper_costs_on_a_base_in_fp8_is_not_priced_as_with_a_shared_prefix() -> None:
    """36 at once without one were measured: 300 examples/s, which all cells of a lane are trained at but its last ones."""
    table = read_table()
    steps = build_grid(load_experiment("paper", [FP8, TEN]).experiment)
    costs = estimate_costs(steps, table, table.gpu("h200"), settings=LLAMA_2_7B).steps
    cells = total(one for one in costs if one.step.stage == "task_model")
    assert {one.rate.rows[-1].examples_per_s for one in costs if one.step.stage == "task_model" and one.rate} == {300}
    assert cells.num_examples / 300 < cells.gpu_hours * 3_600 < 1.05 * cells.num_examples / 300


def test_so_is_that_of_pools_written_in_fp8(tmp_path: Path) -> None:
    options = (FP8, "generation_precision=fp8")
    hours, money = paid("paper", read_table(), *options).split(" | ")
    said = f"`paper` takes {hours} hours ({money}) for one seed, {on_eight('paper', tmp_path, *options)} on eight"
    assert said in " ".join(PAGE.read_text().split())
