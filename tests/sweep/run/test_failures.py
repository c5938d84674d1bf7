"""A failure is told by its cause, whatever Ray, Ray Data and Ray Train made of it. Their objects are real."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from sweep.run.failures import one_line, root_cause
from sweep.run.session import RayOptions, _check_address, ray_session

ROOT = Path(__file__).parents[3]
NO_LIBRARY = "libnuma.so.1: cannot open shared object file: No such file or directory"


class LockedError(Exception):
    """Cannot be sent to another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def fail(how: str) -> None:
    match how:
        case "library":
            raise ImportError(NO_LIBRARY)
        case "chained":
            try:
                raise ImportError(NO_LIBRARY)
            except ImportError as error:
                raise RuntimeError("the engine did not start") from error
        case "handled":
            try:
                raise KeyError("fast path")
            except KeyError:
                raise ImportError(NO_LIBRARY)  # noqa: B904 - the first is not its cause
        case "user":
            raise UserError("size=0 is too small; give 1")
        case "locked":
            raise LockedError("a: b")
        case "exit":
            os._exit(3)


class Worker:
    """Fails when it is made or when it is called."""

    def __init__(self, made: str = "", called: str = "") -> None:
        fail(made)
        self.called = called

    def __call__(self, batch: Any) -> Any:
        fail(self.called)
        return batch


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(RayOptions(max_cpus=4), []):
        import ray.cloudpickle

        # Workers cannot import a module of the tests by its name.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


def by_actor(made: str = "", called: str = "") -> None:
    import ray

    ray.get(ray.remote(Worker).options(num_cpus=0).remote(made, called).__call__.remote(1))


def by_task(how: str) -> None:
    import ray

    ray.get(ray.remote(fail).options(max_retries=0).remote(how))


def by_data(made: str = "", called: str = "") -> None:
    import ray.data

    workers = ray.data.ActorPoolStrategy(size=1)
    arguments = {"made": made, "called": called}
    ray.data.range(2).map_batches(Worker, fn_constructor_kwargs=arguments, compute=workers, max_restarts=0).take_all()


def by_train(how: str) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    with tempfile.TemporaryDirectory() as folder:
        run, workers = RunConfig(name="failing", storage_path=folder), ScalingConfig(num_workers=1)
        # Torch's trainer is one of these; its workers would import torch, and meet, first.
        DataParallelTrainer(lambda config: fail(how), train_loop_config={}, scaling_config=workers, run_config=run).fit()


IMPORT_ERROR = f"ImportError: {NO_LIBRARY}"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("run", "shown"),
    [
        pytest.param(lambda: by_actor("library"), IMPORT_ERROR, id="actor-made"),
        pytest.param(lambda: by_actor("chained"), IMPORT_ERROR, id="actor-chained"),
        pytest.param(lambda: by_actor("handled"), IMPORT_ERROR, id="actor-handled"),
        pytest.param(lambda: by_actor("locked"), "LockedError: a: b", id="actor-locked"),
        pytest.param(lambda: by_actor("user"), "size=0 is too small; give 1", id="actor-user"),
        pytest.param(lambda: by_actor(called="library"), IMPORT_ERROR, id="actor-called"),
        pytest.param(lambda: by_actor(called="locked"), "LockedError: a: b", id="actor-called-locked"),
        pytest.param(lambda: by_actor(called="exit"), "its process died", id="actor-exit"),
        pytest.param(lambda: by_task("exit"), "its process died", id="task-exit"),
        pytest.param(lambda: by_data("library"), IMPORT_ERROR, id="data-made"),
        pytest.param(lambda: by_data(called="library"), IMPORT_ERROR, id="data-called"),
        pytest.param(lambda: by_data(called="exit"), "its process died", id="data-exit"),
        pytest.param(lambda: by_train("library"), IMPORT_ERROR, id="train"),
        pytest.param(lambda: by_train("exit"), "its process died", id="train-exit", marks=pytest.mark.slow),
    ],
)
def test_the_cause_is_shown_and_not_rays_name_for_it(run: Callable[[], None], shown: str) -> None:
    with pytest.raises(Exception) as caught:  # which one is Ray's affair
        run()
    line = one_line(caught.value)
    assert line.startswith(shown) and len(line) < 120
    assert isinstance(root_cause(caught.value), UserError) == shown.startswith("size=0")


def test_what_a_stage_says_of_a_full_disk_is_said_and_nothing_of_ray_data_s() -> None:
    retries = "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, …"
    error = UserError("/pool: the disk is full; free some space")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), retries)
    assert one_line(error) == "/pool: the disk is full; free some space"
    assert one_line(error.__cause__) == "the disk is full; free some space and run the same command again to go on"
    assert one_line(PermissionError(errno.EACCES, "Permission denied", retries)) == "Permission denied"
    copied = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/reports")
    copied.__cause__ = shutil.Error([("a", "b", "[Errno 28] No space left on device")])
    assert one_line(copied).startswith("the disk is full at /reports; ")
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/pool")
    assert one_line(quota) == "the disk is full at /pool; free some space and run the same command again to go on"


def test_a_name_that_is_not_utf_8_is_the_users_to_change() -> None:
    text = 'a note\n{"data": "/data/caf\udce9/a b", "seeds": "0"}'
    for place in ("/data/caf\udce9/a b", text):
        with pytest.raises(UnicodeEncodeError) as caught:
            place.encode()
        wrapped = RuntimeError("around it")
        wrapped.__cause__ = caught.value
        assert isinstance(root_cause(wrapped), UserError)
        assert one_line(wrapped) == (
            r"b'/data/caf\xe9/a b' is not UTF-8, as a file's or folder's name has to be for this; rename it or name another"
        )
    # Half of a surrogate pair, and a letter that another encoding lacks, are no names of a disk.
    for other, encoding in (("\ud83d", "utf-8"), ("é", "ascii")):
        with pytest.raises(UnicodeEncodeError) as caught:
            other.encode(encoding)
        assert root_cause(caught.value) is caught.value


def test_what_ray_says_of_a_lost_process_is_said_in_plain_words() -> None:
    import ray.exceptions

    low = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory. " + "Memory: " * 200)
    assert one_line(low) == "Ray ended its process because the machine ran low on memory"
    assert one_line(ray.exceptions.NodeDiedError("Node IP: 192.0.2.2")) == "the machine that it ran on was lost"
    ended = ray.exceptions.RayActorError("ab" * 16, "Worker exit detail: Worker exits with an exit code 7.", False, False)
    assert one_line(ended) == "its process ended with exit code 7"
    assert one_line(ray.exceptions.GetTimeoutError("after 5 s")) == "GetTimeoutError: after 5 s"


@pytest.mark.timeout(200)
def test_a_worker_that_cannot_start_leaves_one_line_on_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fake_study.py")), str(tmp_path), "0", "6", "worker"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_DEDUP_LOGS_SKIP_REGEX", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == ["start", "failed"], done.stdout
    assert f"failed  task_model/worker: {IMPORT_ERROR} (traceback: {tmp_path}/logs/" in lines[1]
    assert "Traceback" not in done.stderr and NO_LIBRARY in Path(lines[1].split("traceback: ")[1].rstrip(")")).read_text()


def test_what_ray_data_adds_to_a_message_is_left_out() -> None:
    error = UserError(
        "pairs.jsonl: line 2\nmend it\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo …"
    )
    wrapped = RuntimeError("around it")
    wrapped.__cause__ = error
    assert str(root_cause(wrapped)) == "pairs.jsonl: line 2\nmend it"


def test_a_cluster_that_auto_finds_and_that_answers_nobody_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Ray of another run on this machine, which listens on loopback and is announced by the machine's address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", lambda *_: place)
        with pytest.raises(UserError, match=r"--address auto: no Ray answers there .*; start a cluster"):
            _check_address("auto")
