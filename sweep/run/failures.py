"""The cause of a failure in one line, whatever the layers between made of it."""

import errno
import re

from pipelines.errors import UserError

PROCESS_DIED = "its process died: out of memory, killed, or a crash in a library"


class ForeignError(Exception):
    """An exception of another process of which only text is left; the text names its type."""


def root_cause(error: BaseException) -> BaseException:
    """The exception that the layers above (Ray, Data, Train) wrapped: a UserError or a full disk, else the innermost.

    Where those layers kept no exception but its text, or a process died without one, a ForeignError says what is known.
    """
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, UserError) or (isinstance(cause, OSError) and is_disk_full(cause)):
            return cause
    for cause in chain:
        if messages := re.findall(r"^(?:[\w.]*\.)?UserError: (.+)$", str(cause), flags=re.MULTILINE):
            return UserError(messages[-1])
    for cause in chain:
        if type(cause).__module__.partition(".")[0] != "ray":
            return cause
        if text := _raised(str(cause)) or _death(cause):
            return ForeignError(text)
    # Some of Ray's own say nothing at all.
    return next((cause for cause in chain if str(cause)), error)


def _causes(error: BaseException) -> list[BaseException]:
    """`error` and all that it wraps, the innermost first."""
    chain = [error]
    for outer in chain:  # grows while it is walked
        wrapped = [getattr(outer, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
        failures = getattr(outer, "worker_failures", None)
        wrapped += failures.values() if isinstance(failures, dict) else []
        chain += [inner for inner in wrapped if isinstance(inner, BaseException) and inner not in chain]
    return chain[::-1]


def _raised(text: str) -> str:
    """The innermost exception of a printed traceback, type and message; empty if `text` holds none."""
    last = re.sub(r"\x1b\[\d+m", "", text).rpartition("During handling of the above exception")[2]
    innermost = last.partition("The above exception was the direct cause")[0]
    frames = list(re.finditer(r"^(?:  File \"|.*\bray::).*$", innermost, flags=re.MULTILINE))
    after = innermost[frames[-1].end() :] if frames else ""
    raised = re.search(r"^(?:\w+\.)*([A-Za-z_]\w*(?:: .*)?)$", after, flags=re.MULTILINE | re.DOTALL)
    return raised[1].strip() if raised else ""


def _death(error: BaseException) -> str:
    """The end of a process that could raise nothing any more, in plain words; empty if `error` is of something else."""
    # By name: whoever reads a failure need not have Ray.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "OutOfMemoryError" in kinds or "running low on memory" in text:
        return "Ray ended its process because the machine ran low on memory"
    if "NodeDiedError" in kinds or "node has died" in text or getattr(error, "preempted", False):
        return "the machine that it ran on was lost"
    if not kinds & {"RayActorError", "WorkerCrashedError"}:
        return ""
    if code := re.search(r"exit code (\d+)", text):
        return f"its process ended with exit code {code[1]}"
    return PROCESS_DIED


def is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def one_line(error: BaseException) -> str:
    """A failure as the command line shows it: its root cause, or what the user can do about it."""
    if not isinstance(error, UserError):
        error = root_cause(error)
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if is_disk_full(error):
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space and run the same command again to go on"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if len(text) > 400:
        text = text[:400] + "…"
    if isinstance(error, ForeignError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
