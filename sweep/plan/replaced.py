"""What a run takes the place of: the study of the same name that was run with other settings."""

from collections.abc import Iterable
from shlex import quote
from typing import Any

from sweep.graph.records import Study
from sweep.graph.step import Step
from sweep.study.loading import Loaded


def replaced_line(loaded: Loaded, steps: Iterable[Step], earlier: Study | None) -> str:
    """What the run leaves out of the `earlier` study of its name, what is kept, and how to have both; "" if it has all of it.

    A study that only grows replaces nothing.
    """
    if earlier is None:
        return ""
    now = {step.fingerprint for step in steps}
    left = [step for step in earlier.steps if step.fingerprint not in now]
    if not left:
        return ""
    before = {name: value for name, value in loaded.parameters.items() if name in earlier.parameters}
    changed = [name for name, value in before.items() if value != earlier.parameters[name]]
    differs = "; ".join(f"{name} {_written(earlier.parameters[name])} → {_written(before[name])}" for name in changed)
    back = " ".join(f"-p {quote(f'{name}={_written(earlier.parameters[name])}')}" for name in changed)
    return (
        f"{earlier.experiment} was last run with {f'other parameters ({differs})' if differs else 'other contents'}, and this "
        f"run takes its name: {len(left):,} of its {len(earlier.steps):,} artifacts are not part of it. They are kept in the "
        f"store, and its report beside the new one. To have both, give this one another name: --name NAME"
        + (f"; to go back, run it with {back}" if back else "")
    )


def _written(value: Any) -> str:
    """A parameter as `-p` takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
