"""MLflow's client, which never makes anyone wait for long."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipelines.workers.telemetry import turn_off

OPEN_S = 120.0
"""Seconds to open a database: its tables are made the first time, and an upgrade takes as long."""

CALL_S = 8.0
"""Seconds that a call may take."""

REST_S = 30.0
"""Seconds without a call after one that was in vain and took long."""

SLOW_S = 2.0
"""A call that fails sooner needs no rest."""

HTTP = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Where the user has set none: by MLflow's own, a server that does not answer is waited for by the quarter of an hour."""

T = TypeVar("T")


def within(seconds: float, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The value of a call, or TimeoutError: what does not return is left to a thread that keeps no process alive."""
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put((function(*arguments, **options), None))
        except BaseException as error:  # handed on
            answer.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def mlflow_client(uri: str) -> Any:
    """MLflow's own client, quiet."""
    load_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def load_mlflow() -> None:
    """Import MLflow, quiet and with limits of its requests."""
    # Nothing is sent anywhere but to the tracking store.
    turn_off()
    # Two lines for every run that ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name, value in HTTP.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    # After the import, which sets them. What goes wrong is raised as well.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class Client:
    """MLflow's client with a limit: a call raises TimeoutError after `CALL_S`, and then, for `REST_S`, at once.

    Raises what MLflow raises, and TimeoutError if it does not open.
    """

    def __init__(self, uri: str) -> None:
        self._rest_until = 0.0
        self._client = within(OPEN_S, mlflow_client, uri)

    def wake(self) -> None:
        """Let the next call try again, however the last one went."""
        self._rest_until = 0.0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.monotonic()
            if began < self._rest_until:
                raise TimeoutError("MLflow did not answer a moment ago")
            try:
                try:
                    return within(CALL_S, getattr(self._client, name), *arguments, **options)
                except Exception as error:
                    # Another tracker has set the same tag between the look for it and the writing. Now it is there.
                    if not name.startswith("set_") or "IntegrityError" not in str(error):
                        raise
                    return within(CALL_S, getattr(self._client, name), *arguments, **options)
            except Exception:
                if time.monotonic() - began > SLOW_S:
                    self._rest_until = time.monotonic() + REST_S
                raise

        return call
