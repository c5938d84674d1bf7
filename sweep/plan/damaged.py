"""What of a plan is damaged, in words, and when that is too much to build again without being asked."""

from collections import Counter
from collections.abc import Sequence
from shlex import quote

from pipelines.errors import DamagedError
from sweep.graph.records import Store, counts_in_words
from sweep.plan.plan import Planned

MOST_DAMAGED = 10
"""Artifacts that a run sets aside and builds again by itself. A disk damages a few; more of them lack files for a common
reason, as in a copy of a store that left files out or after a bucket's rule removed them, and they may be had without a GPU."""


def damaged_words(planned: Sequence[Planned]) -> str:
    """How many artifacts are damaged, of how many, which, and one of them; "" if none is."""
    damaged = [member for member in planned if member.damage]
    if not damaged:
        return ""
    num_there = sum(member.is_there for member in planned)
    stages = Counter(member.step.stage for member in damaged)
    one = damaged[0].damage.partition(";")[0] + (", for one" if len(damaged) > 1 else "")
    are = "is" if len(damaged) == 1 else "are"
    return f"{len(damaged):,} of the {num_there:,} artifacts that are there {are} damaged ({counts_in_words(stages)}; {one})"


def is_refused(planned: Sequence[Planned]) -> bool:
    """Whether a run ends at so much damage before it begins."""
    return sum(bool(member.damage) for member in planned) > MOST_DAMAGED


def rebuilt_words(planned: Sequence[Planned]) -> str:
    """How much is to be built in all, and what of it for weights that are not here."""
    num_missing = sum(not member.is_cached for member in planned)
    num_lost = sum(member.lost_weights for member in planned)
    num_uncertain = sum(member.is_uncertain for member in planned)
    words = f"{num_missing:,} of {len(planned):,} are to be built in all"
    if num_lost:
        words += f", {num_lost:,} of them since their weights are not here and what is built again needs them"
    if num_uncertain:
        words += f", and {num_uncertain:,} more if what they were built from comes out otherwise"
    return words


def check_damage(planned: Sequence[Planned], store: Store) -> None:
    """Raise DamagedError where more than `MOST_DAMAGED` artifacts are damaged: a run would build them all again."""
    if is_refused(planned):
        # Else all of a remote store would be read over the network.
        sizes = "" if store.is_local else " --sizes"
        raise DamagedError(
            f"{damaged_words(planned)}. A run sets up to {MOST_DAMAGED} aside and builds them again by itself; so many lack "
            "their files for a common reason, as in a copy of a store that left files out. Nothing was moved or begun. Bring "
            f"the files back and run the same command again; or, if they are lost, `blindsweep verify --store "
            f"{quote(store.uri)}{sizes} --set-aside` moves what is damaged to set-aside/, and the same command then builds it "
            f"again ({rebuilt_words(planned)})"
        )
