"""The cause of a failure in one line, whatever the layers between made of it, and who is at fault."""

import errno
import os
import re
import traceback
from collections.abc import Iterator
from enum import StrEnum
from urllib.parse import quote

from pipelines.errors import RETRIES, NoticeError, StalledError, StoreUnreachableError, UserError
from pipelines.object_store import is_unreachable, no_answer, says_unreachable
from pipelines.storage import is_disk_full
from sweep.index.address import secrets_of

PROCESS_DIED = "its process died: out of memory, killed, or a crash in a library"
LOW_ON_MEMORY = "Ray ended its process because the machine ran low on memory"
MACHINE_LOST = "the machine that it ran on was lost"
GPU_IS_FULL = "CUDA out of memory"
"""In torch's message."""
# By name: whoever reads a failure need not have Ray, nor every library that a store is reached with.
MACHINE_ERRORS = {
    "NodeDiedError",
    "LocalRayletDiedError",
    # Its process could not be reached, and nobody knows of its death: what a machine looks like that has just gone.
    "ActorUnavailableError",
    "PreemptionError",
    # Objects are on the machine of the process that made them.
    "ObjectLostError",
}
PROCESS_ERRORS = {
    "RayActorError",
    "WorkerCrashedError",
    "RaySystemError",
    # Ray Train's: a worker was gone before it had begun; why, it does not pass on.
    "WorkerGroupStartupFailedError",
}
CONNECTION_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",  # botocore's
    "ClientConnectionError",  # aiohttp's
}
# What one worker of a finetuning raises when another one is gone.
BROKEN_CONNECTION = re.compile(r"[Cc]onnection (was )?(closed|reset|refused|aborted)|Broken pipe|remote process exited")
KNOWN = UserError | StoreUnreachableError | NoticeError | StalledError
"""Our own errors, whose text is all that there is to say."""

SECRET_NAMES = re.compile("passw|secret|token|credential|key", re.IGNORECASE)
"""Environment variables with such a name hold a secret, unless it is the path of a file or too short to be one."""
SHORTEST_SECRET = 6
SECRET_FORMS = (
    re.compile(r"(\w+://[^\s/:@\"']*:)[^\s/@\"']+(?=@)"),
    re.compile(r"(\w+://)[^\s/:@\"']{20,}(?=@)"),
    # Presigned addresses: Amazon's, Google's, Azure's.
    re.compile(
        r"([?&;](?:[\w.-]*(?:signature|credential|token|secret|passw|api[_-]?key)[\w.-]*|sig|AWSAccessKeyId)=)[^\s&;\"'<>]+",
        re.IGNORECASE,
    ),
    re.compile(r"(\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer |basic )?)[^\s\"',]+", re.IGNORECASE),
    re.compile(r"\b(hf_)[A-Za-z0-9]{20,}"),
)
"""What looks like a secret wherever it is from; the group is kept."""


class Kind(StrEnum):
    """What a step ended of that has no artifact. docs/reliability.md says what is tried again, and how often."""

    FAILURE = "failure"
    """It raised: its own doing."""
    DEATH = "death"
    """A process of it died, or a connection broke, and its machine lives: in doubt."""
    MEMORY = "memory"
    """Ray ended a process of it since its machine ran low on memory, whoever took that: in doubt as well."""
    GPU_MEMORY = "gpu_memory"
    """It raised, for want of memory on its GPU, whoever took that: in doubt where it has a part of one."""
    LOSS = "loss"
    """Its machine, or Ray on it, was lost."""
    AWAY = "away"
    """Its store did not answer, or could not serve."""


class ForeignError(Exception):
    """An exception of another process of which only text is left; the text names its type."""


WRAPPING = ("cause", "_base_exc", "controller_failure", "health_check_failure", "__cause__")
"""Where Ray's exceptions, and Python's, keep the one that they wrap."""


def kind(error: BaseException) -> Kind:
    """Whether a step failed by itself, lost a process, or lost its machine. Of several causes, the one least at fault counts:
    workers that live on fail of the connection to one that is gone.
    """
    kinds = {_kind(cause) for cause in _causes(error)}
    return next(
        kind for kind in (Kind.LOSS, Kind.AWAY, Kind.MEMORY, Kind.DEATH, Kind.GPU_MEMORY, Kind.FAILURE) if kind in kinds
    )


def _kind(error: BaseException) -> Kind:
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if "RayTaskError" in names or getattr(error, "actor_init_failed", False):
        # It was raised; what it wraps is looked at by itself, if it is more than this text.
        return Kind.AWAY if says_unreachable(text) else Kind.FAILURE
    if names & MACHINE_ERRORS or getattr(error, "preempted", False):
        return Kind.LOSS
    if is_store_away(error):
        return Kind.AWAY
    if _is_low_on_memory(error):
        return Kind.MEMORY
    if GPU_IS_FULL in text:
        return Kind.GPU_MEMORY
    if names & PROCESS_ERRORS or _is_ray_s(error):
        if re.search(r"node has died|node was terminated|raylet died", text):
            return Kind.LOSS
        return Kind.DEATH if names & PROCESS_ERRORS else Kind.FAILURE
    return Kind.DEATH if names & CONNECTION_ERRORS or BROKEN_CONNECTION.search(text) else Kind.FAILURE


def is_store_away(error: BaseException) -> bool:
    """Whether it was raised since a store does not answer, or cannot serve."""
    return isinstance(error, StoreUnreachableError) or is_unreachable(error)


def root_cause(error: BaseException) -> BaseException:
    """The exception that the layers above (Ray, Data, Train) wrapped: a UserError, a full disk, a store that is
    away, else the innermost. A name that could not be written as UTF-8 is a UserError, too.

    Where those layers kept no exception but its text, or a process died without one, a ForeignError says what is known.
    """
    chain = _causes(error)
    for cause in chain:
        # Ray Data adds to a message how often it has tried.
        if isinstance(cause, UserError) and (said := str(cause).partition(RETRIES))[1]:
            return UserError(said[0])
        if isinstance(cause, KNOWN):
            return cause
        if name := name_not_utf8(cause):
            return UserError(
                f"{name!r} is not UTF-8, as a file's or folder's name has to be for this; rename it or name another"
            )
    if full := [_without_retries(cause) for cause in chain if isinstance(cause, OSError) and is_disk_full(cause)]:
        # The one that says where.
        return next((cause for cause in full if isinstance(cause, OSError) and cause.filename), full[0])
    for cause in chain:
        if messages := re.findall(r"^(?:[\w.]*\.)?UserError: (.+)$", str(cause), flags=re.MULTILINE):
            return UserError(messages[-1])
    for cause in chain:
        if not _is_ray_s(cause):
            return ForeignError(text) if (text := _gpu_is_full(str(cause))) else _without_retries(cause)
        if text := _raised(str(cause)) or _death(cause):
            return ForeignError(_gpu_is_full(text) or text)
    # Some of Ray's own say nothing at all.
    return next((cause for cause in chain if str(cause)), error)


def _without_retries(error: BaseException) -> BaseException:
    """`error` without what Ray Data adds, which in an OSError takes the place of the file's name."""
    if isinstance(error, OSError) and str(error.filename).startswith(RETRIES.strip()):
        return type(error)(error.errno, error.strerror)
    return error


def _causes(error: BaseException) -> list[BaseException]:
    """`error` and all that it wraps, the innermost first."""
    chain = [error]
    for outer in chain:  # grows while it is walked
        wrapped = [getattr(outer, name, None) for name in WRAPPING]
        failures = getattr(outer, "worker_failures", None)
        wrapped += failures.values() if isinstance(failures, dict) else []
        chain += [inner for inner in wrapped if isinstance(inner, BaseException) and inner not in chain]
    return chain[::-1]


def name_not_utf8(error: BaseException) -> bytes:
    """The name of a file, as its disk has it, that Arrow or a text around it could not have; of any other error nothing."""
    if not isinstance(error, UnicodeEncodeError) or not "\udc80" <= error.object[error.start] <= "\udcff":
        return b""
    before, behind = error.object[: error.start], error.object[error.start :]
    return os.fsencode(re.split(r'["\n]', before)[-1] + re.split(r'["\n]', behind)[0])


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
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    if _is_low_on_memory(error):
        used = re.search(r"was ([\d.]+) ?GB used / ([\d.]+) ?GB", text)
        return LOW_ON_MEMORY + (f" ({used[1]} of {used[2]} GB were used)" if used else "")
    if "NodeDiedError" in kinds or "node has died" in text or getattr(error, "preempted", False):
        return MACHINE_LOST
    if not kinds & {"RayActorError", "WorkerCrashedError"}:
        return ""
    if code := re.search(r"exit code (\d+)", text):
        return f"its process ended with exit code {code[1]}"
    return PROCESS_DIED


def _gpu_is_full(text: str) -> str:
    """What torch says of a GPU without memory, of which it says a lot; empty if `text` is of something else."""
    if GPU_IS_FULL not in text:
        return ""
    said = [
        found.expand(words)
        for pattern, words in (
            (r"Tried to allocate ([\d.]+ \w+)", r"it asked for \1"),
            (r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", r"\2 of \1 were free"),
            # Where processes cannot be told apart, it has the largest number there is.
            (r"this process has (\d{1,4}(?:\.\d+)? \w+) memory in use", r"it held \1"),
        )
        if (found := re.search(pattern, text))
    ]
    return "its GPU has no memory left" + (f" ({', '.join(said)})" if said else "")


def _is_ray_s(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "ray"


def _is_low_on_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended a process. torch's error of the same name is of a GPU's memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return _is_ray_s(error) and ("OutOfMemoryError" in kinds or "running low on memory" in str(error))


def is_read_only(error: BaseException) -> bool:
    """Whether something may be read and not written."""
    return isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS)


def without_secrets(text: str) -> str:
    """`text` with the secrets of this process's environment replaced by `***`, and what looks like one.

    Of the environment those are the values of variables named like a secret, of six characters or more, and passwords in
    addresses. Failures are kept in logs, in the study's manifest and in MLflow, where others read them.
    """
    for secret in sorted(set(_secrets_of_environment()), key=len, reverse=True):
        text = text.replace(secret, "***")
    for form in SECRET_FORMS:
        text = form.sub(r"\1***", text)
    return text


def _secrets_of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        secrets = list(secrets_of(value)) if "://" in value else []
        if SECRET_NAMES.search(name) and not os.path.exists(value):
            secrets.append(value)
        for secret in secrets:
            if len(secret) >= SHORTEST_SECRET:
                # As it stands, in an address, and in what Python shows of a text.
                yield from (secret, quote(secret, safe=""), repr(secret)[1:-1])


def whole_traceback(error: BaseException) -> str:
    """The traceback of an error and of all that led to it, without secrets."""
    return without_secrets("".join(traceback.format_exception(error)))


def one_line(error: BaseException) -> str:
    """A failure as the command line shows it, without secrets: its root cause, or what the user can do about it."""
    return without_secrets(_one_line(error))


def in_lines(error: BaseException) -> str:
    """The same as people see it on a terminal: a message that was written in several lines, a list for one, keeps them."""
    lines = without_secrets(str(error)).strip().splitlines()
    if not isinstance(error, KNOWN) or len(lines) < 2:
        return one_line(error)
    # What is indented is part of a list.
    return "\n".join("  " * line.startswith((" ", "\t")) + " ".join(line.split()) for line in lines if line.strip())


def _one_line(error: BaseException) -> str:
    if not isinstance(error, UserError):
        error = root_cause(error)
    # Before it is cut: half a secret would not be known for one.
    text = " ".join(without_secrets(str(error)).split())
    if isinstance(error, KNOWN):
        return text
    if is_disk_full(error):
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"the disk is full{where}; free some space and run the same command again to go on"
    if is_unreachable(error):
        return no_answer(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if len(text) > 400:
        text = text[:400] + "…"
    if isinstance(error, ForeignError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
