"""The command line's app and its commands. Everything heavy is imported by the command that needs it."""

from typing import Annotated

import typer

from sweep.commands.audit import audit
from sweep.commands.data import experiments, fetch
from sweep.commands.data_check import check as check_data
from sweep.commands.options import one_clear_error
from sweep.commands.plan import plan
from sweep.commands.results import compare, explain, power, report, verdicts
from sweep.commands.run import run
from sweep.commands.take_out import export, publish
from sweep.commands.timeline import timeline
from sweep.commands.tracking import reindex, ui
from sweep.commands.upkeep.bundle import bundle, unbundle
from sweep.commands.upkeep.cluster import check, end
from sweep.commands.upkeep.doctor import doctor
from sweep.commands.upkeep.gc import gc
from sweep.commands.upkeep.status import status
from sweep.commands.upkeep.verify import verify

app = typer.Typer(
    name="blindsweep",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Does finetuning on generated data give a model blindspots? Run the whole study.

A generator is finetuned, writes a synthetic pool; task models are finetuned from several starting points on
original, synthetic and biased synthetic training sets; all are evaluated on general and blindspot test sets.

**From nothing to a report**, on any machine:

    blindsweep run demo

**The same with your own settings**, or your own experiment:

    blindsweep run demo -p seeds=0,1,2
    blindsweep run my_study.py

Everything built lies in a store (`--store`) under the fingerprint of all that can change it. Running again
builds only what is missing, after a crash or a changed setting: `blindsweep plan` says beforehand what and
why.""",
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"blindsweep {version('blindsweep')}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


data = typer.Typer(no_args_is_help=True, help="Data of your own, looked at; MultiNLI, HANS and challenge sets, fetched.")
app.add_typer(data, name="data")
cluster = typer.Typer(no_args_is_help=True, help="The machines of a cluster, before and after its runs.")
app.add_typer(cluster, name="cluster")
of_studies = (run, plan, status, timeline, report, explain, verdicts, compare, power)
for command in (*of_studies, audit, export, publish, bundle, unbundle, verify, gc, doctor, ui, reindex, experiments):
    app.command()(one_clear_error(command))
data.command()(one_clear_error(fetch))
data.command("check")(one_clear_error(check_data))
for command in (check, end):
    cluster.command()(one_clear_error(command))
