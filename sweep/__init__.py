"""From an experiment to finished artifacts: experiments, the step graph, plans, runs and the command line.

What a study's file imports is handed on here and in `sweep.experiments`; docs/studies.md lists it. It is imported when it is
first asked for, so that reading a store's records does not import what only an experiment needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.study.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        from sweep.study import public

        names = {public_name: value for public_name, value in vars(public).items() if not public_name.startswith("_")}
        if name == "__all__":
            return list(names)
        if name not in names:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return names[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
