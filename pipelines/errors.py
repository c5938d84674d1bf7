"""The exception class for mistakes that the user can put right, and what groups of jobs need beside it."""

import pickle
import traceback

RETRIES = "\nFailed to apply UDF transform after "
"""How begins what Ray Data adds to an exception's text, or puts in the place of a file's name: how often it has tried."""


class UserError(ValueError):
    """The user's mistake. The message names the value, the rule it breaks and the way out.

    The command line prints the message without a traceback; any other exception is our own bug and keeps its
    traceback.
    """


class DamagedError(UserError):
    """A file is not what the record of its artifact says, or is missing, or the record itself cannot be read.

    Not the user's mistake, but theirs to know: the message names the file and what was found.
    """


class DeniedError(UserError, PermissionError):
    """A store does not let the user do something, with credentials that it knows; the message names bucket and key."""


class StoreUnreachableError(ConnectionError):
    """A store that does not answer: the message names it, and trying again may help."""


class NeighbourFailedError(Exception):
    """A job of a group was cut off with the others; it is not known to be at fault, and may be tried alone."""


class NotBegunError(Exception):
    """A job whose workers were lost before it had begun, while others had: it is not at fault."""


class NoticeError(Exception):
    """A job that was stopped at a notice (`notice.py`), what it had done committed: neither a failure nor a loss."""


class StalledError(Exception):
    """Work that made no progress for too long (`watchdog.py`), and was ended."""


def portable(error: Exception) -> Exception:
    """`error` with its traceback as a note, fit to be sent to another process and to be kept: it holds on to no frames."""
    error.add_note(traceback.format_exc())
    error.__cause__ = error.__context__ = None
    try:
        pickle.dumps(error)
    except Exception:
        replacement = RuntimeError(f"{type(error).__name__}: {error}")
        replacement.__notes__ = error.__notes__
        return replacement
    return error.with_traceback(None)
