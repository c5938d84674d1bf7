"""`blindsweep cluster`: what concerns the machines of a cluster and no study."""

from pathlib import Path
from typing import Annotated

import typer

from sweep.commands.options import Price, Throughputs, not_negative, tell


def check(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The cluster's file, for `ray up`.")] = Path("cluster.yaml"),
    store: Annotated[
        str | None,
        typer.Option(envvar="BLINDSWEEP_STORE", help="The store of the runs; one small object is written and removed."),
    ] = None,
    price: Price = None,
    spot_price: Annotated[
        float | None,
        typer.Option(
            callback=not_negative,
            help="The same of a spot machine. [default: list price]",
        ),
    ] = None,
    throughputs: Throughputs = None,
) -> None:
    """Look at all that `ray up` would trip over, and what an hour may cost, before a machine is started.

    A line for each thing looked at: ok, problem, or not checked and why. It ends with 1 if there is a problem. AWS is asked
    with your own credentials, and nothing is changed there.

        blindsweep cluster check cluster.yaml --store s3://bucket/studies --price 2.6 --spot-price 1.1
    """
    from sweep.cluster.account import Prices
    from sweep.cluster.check import check_cluster
    from sweep.cluster.findings import in_order
    from sweep.plan.throughputs import read_table

    findings = list(check_cluster(file, store, Prices(read_table(throughputs), price, spot_price)))
    tell(in_order(findings))
    if any(finding.verdict == "problem" for finding in findings):
        raise typer.Exit(1)


def end() -> None:
    """End the whole cluster, on its head: Ray, then all workers, then this machine.

    Where workers cannot be ended it says why, ends with 1, and the head stays on, so that nothing goes on unseen. After a run,
    however that went:

        ray exec --tmux cluster.yaml 'blindsweep run …; blindsweep cluster end'
    """
    from sweep.cluster.end import end_cluster

    end_cluster()
