"""From an experiment to finished artifacts: experiments, the step graph, plans, runs and the command line.

What a study's file imports (docs/reference/python.md) is handed on here and in `sweep.experiments`. It is imported when it is
first asked for, so that reading a store's records does not import what only an experiment needs.
"""

from typing import TYPE_CHECKING, Any

from sweep.own_packages import keep_ours

keep_ours()

if TYPE_CHECKING:
    from sweep.study.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        from sweep.study import public

        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(__getattr__("__all__"))
