"""What is tried again, and how often: the table of docs/reliability.md, row by row. No Ray runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import Mock

import pytest
import ray.exceptions
from botocore.exceptions import ClientError
from gcsfs.retry import HttpError
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.tune.experiment.trial import Trial
from s3fs.errors import translate_boto_error

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import NeighbourFailedError, NotBegunError, StoreUnreachableError, UserError
from pipelines.finetune.recipe import FinetuneConfig
from pipelines.finetune.task_model import TaskModelConfig
from pipelines.resources import Resources
from sweep.graph.queue import Capacity
from sweep.graph.records import Record, Store
from sweep.graph.stages import REGISTRY, Job, Stage
from sweep.graph.step import Step
from sweep.run.failures import MACHINE_LOST, PROCESS_DIED, Kind, kind, one_line
from sweep.run.lanes import host_lost, judged
from sweep.run.progress import Progress
from sweep.run.trial import Order, Outcome, carry_out
from sweep.run.tune import MAX_LOSSES, Run, have_tune_survive_low_memory
from tests.sweep.run.stand_in_hosts import StandInHosts, end

FAILED = Outcome(None, "TypeError: unexpected")
FINAL = Outcome(None, "size=0; give 1", is_final=True)
SLOW_DOWN = {"Error": {"Code": "SlowDown", "Message": "Please."}, "ResponseMetadata": {"HTTPStatusCode": 503}}
TOO_LATE = {"Error": {"Code": "RequestTimeout", "Message": "Idle."}, "ResponseMetadata": {"HTTPStatusCode": 400}}
DIED = Outcome(None, "its process died", kind=Kind.DEATH)
KILLED = Outcome(None, "the machine ran low on memory", kind=Kind.MEMORY)
FULL = Outcome(None, "its GPU has no memory left (it asked for 1.88 GiB)", kind=Kind.GPU_MEMORY)
LOST = Outcome(None, MACHINE_LOST, kind=Kind.LOSS)


def actor_died(text: str, reason: int | None = None) -> ray.exceptions.ActorDiedError:
    context = ActorDiedErrorContext(error_message=text, actor_id=b"1" * 16)
    if reason is not None:
        context.node_death_info.CopyFrom(NodeDeathInfo(reason=reason))
    return ray.exceptions.ActorDiedError(context)


NODE_DIED = actor_died(
    "The actor died because its node has died. Node Id: ab\n\tthe actor's node was terminated unexpectedly: "
)
ACTOR_DIED = actor_died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR")
LOW_ON_MEMORY = ray.exceptions.OutOfMemoryError(
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 7284) was 7.32GB "
    "used / 23.54GB limit (0.310949)"
)
LOW_ON_GPU_MEMORY = type("OutOfMemoryError", (RuntimeError,), {})(  # torch's, as three processes on one GPU had it
    "CUDA out of memory. Tried to allocate 1.88 GiB. GPU 0 has a total capacity of 139.80 GiB of which 398.25 MiB is free. "
    "Process 6693 has 66.00 MiB memory in use. Process 9246 has 39.77 GiB memory in use. Including non-PyTorch memory, this "
    "process has 41.68 GiB memory in use. Of the allocated memory 39.69 GiB is allocated by PyTorch"
)
GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")


def from_train(*failures: Exception) -> Exception:
    """As Ray Train hands it to a group's jobs."""
    failed = NeighbourFailedError("lost")
    failed.__cause__ = WorkerGroupError("two workers", dict(enumerate(failures)))
    return failed


def from_data(raised: str) -> Exception:
    """As Ray Data hands on what a worker raised: its text."""
    text = (
        f'Traceback (most recent call last):\n  File "writer.py", line 1, in __call__\n{raised}\nFailed to apply UDF transform'
    )
    return ray.exceptions.RayTaskError("map", text, RuntimeError(text)).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NODE_DIED, Kind.LOSS),
        (actor_died("drained", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), Kind.LOSS),
        (ray.exceptions.NodeDiedError("Task failed because the node it was running on is dead or unavailable."), Kind.LOSS),
        (ray.exceptions.LocalRayletDiedError(), Kind.LOSS),
        (ray.exceptions.ActorUnavailableError("rpc failed", None), Kind.LOSS),
        (ray.exceptions.OwnerDiedError("ab", None, ""), Kind.LOSS),
        (from_train(GLOO, WorkerHealthCheckFailedError("rank 1", NODE_DIED)), Kind.LOSS),
        (from_train(WorkerHealthCheckFailedError("rank 0", ACTOR_DIED)), Kind.DEATH),
        (from_train(GLOO), Kind.DEATH),
        (from_train(TypeError("unexpected")), Kind.FAILURE),
        (ControllerError(WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")), Kind.DEATH),
        (ACTOR_DIED, Kind.DEATH),
        (ray.exceptions.WorkerCrashedError(), Kind.DEATH),
        (LOW_ON_MEMORY, Kind.MEMORY),
        (from_train(GLOO, WorkerHealthCheckFailedError("rank 1", LOW_ON_MEMORY)), Kind.MEMORY),
        (ray.exceptions.RayTaskError("run", "Traceback: …", LOW_ON_GPU_MEMORY).as_instanceof_cause(), Kind.GPU_MEMORY),
        (LOW_ON_GPU_MEMORY, Kind.GPU_MEMORY),
        (ConnectionResetError("the store"), Kind.DEATH),
        (translate_boto_error(ClientError(SLOW_DOWN, "PutObject")), Kind.AWAY),
        (translate_boto_error(ClientError(TOO_LATE, "PutObject")), Kind.AWAY),
        (HttpError({"code": "503", "message": "Service Unavailable"}), Kind.AWAY),
        (HttpError({"code": 403, "message": "Forbidden"}), Kind.FAILURE),
        (StoreUnreachableError("s3://bucket does not answer"), Kind.AWAY),
        (ray.exceptions.RayTaskError("run", "Traceback: connection closed", TypeError("unexpected")), Kind.FAILURE),
        (from_data("botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL"), Kind.AWAY),
        (from_data("pipelines.errors.StoreUnreachableError: s3://bucket does not answer"), Kind.AWAY),
        (from_data("botocore.exceptions.ClientError: An error occurred (SlowDown) when calling the PutObject"), Kind.AWAY),
        (from_data("botocore.exceptions.ClientError: An error occurred (NoSuchKey) when calling the GetObject"), Kind.FAILURE),
        (from_data("gcsfs.retry.HttpError: Service Unavailable, 503"), Kind.AWAY),
        (from_data("gcsfs.retry.HttpError: Forbidden, 403"), Kind.FAILURE),
        (from_data("TypeError: no StoreUnreachableError: it is said in passing"), Kind.FAILURE),
        (UserError("size=0; give 1"), Kind.FAILURE),
        (TypeError("unexpected"), Kind.FAILURE),
    ],
)
def test_a_cause_says_who_is_at_fault(error: Exception, expected: Kind) -> None:
    assert kind(error) == expected


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(
            LOW_ON_GPU_MEMORY,
            "it asked for 1.88 GiB, 398.25 MiB of 139.80 GiB were free, it held 41.68 GiB",
            id="as torch says it",
        ),
        pytest.param(
            # Another process has raised it, and pickle lacks its type.
            RuntimeError(f"OutOfMemoryError: {LOW_ON_GPU_MEMORY}"),
            "it asked for 1.88 GiB, 398.25 MiB of 139.80 GiB were free, it held 41.68 GiB",
            id="of another process",
        ),
        pytest.param(
            RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. this process has 17179869184.00 GiB memory in use"),
            "it asked for 20.00 MiB",
            id="processes that cannot be told apart",
        ),
        pytest.param(RuntimeError("CUDA out of memory."), "", id="as others say it"),
    ],
)
def test_a_gpu_without_memory_is_told_in_a_line(error: Exception, said: str) -> None:
    assert one_line(error) == "its GPU has no memory left" + (f" ({said})" if said else "")


@pytest.mark.parametrize(
    ("before", "now", "given", "expected"),
    [
        ({"a", "b"}, {"a"}, DIED, LOST),
        ({"a", "b"}, {"a", "c"}, DIED, LOST),
        ({"a", "b"}, {"a", "b", "c"}, DIED, DIED),
        ({"a", "b"}, {"a", "b"}, LOST, LOST),
        ({"a", "b"}, {"a"}, FAILED, FAILED),
        ({"a"}, {"a"}, DIED, DIED),
        ({"a"}, {"a"}, LOST, Outcome(None, PROCESS_DIED, kind=Kind.DEATH)),
    ],
)
def test_a_death_is_a_loss_if_a_machine_is_gone(
    monkeypatch: pytest.MonkeyPatch, before: set[str], now: set[str], given: Outcome, expected: Outcome
) -> None:
    monkeypatch.setattr("sweep.run.lanes.machines_up", lambda: now)
    monkeypatch.setattr("sweep.run.lanes.DETECTION_S", 0.0)
    monkeypatch.setattr("sweep.run.lanes.time.sleep", lambda seconds: None)
    assert judged(given, before) == expected


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The last commit of each step by its slug, in the place of what is in the store."""
    found: dict[str, int] = {}

    def last_commit(output: str) -> int | None:
        return next((number for slug, number in found.items() if f"/{slug}-" in output), None)

    for name, stage in REGISTRY.items():
        monkeypatch.setitem(REGISTRY, name, replace(stage, last_commit=last_commit))
    monkeypatch.setattr("sweep.run.tune.memory_in_use", lambda: (1.0, 20.0))
    return found


class Attempts:
    """A run of `steps` whose trials end as they are told."""

    def __init__(self, steps: Sequence[Step], cached: set[str], path: Path, **options: Any) -> None:
        self.events: list[tuple[str, str]] = []
        self.run = Run(steps, cached, Store(path), Capacity(1, 0), listener=self._listen, hosts=StandInHosts(), **options)
        self.num = 0

    def _listen(self, event: str, step: Step, progress: Progress) -> None:
        self.events.append((event, step.slug))

    def end(self, *outcomes: Outcome) -> list[str]:
        """Start a trial, end it with an outcome for each of its steps; what the display heard since, starts left out."""
        self.num += 1
        self.events.clear()
        assert self.run.suggest(str(self.num))
        end(self.run, str(self.num), *outcomes)
        return [event for event, _ in self.events if event != "start"]


@pytest.fixture
def alone(commits: dict[str, int], tmp_path: Path) -> Attempts:
    return Attempts([Step("starting_set", "step", TrainingSetConfig("starting", size=3, seed=0))], set(), tmp_path)


@pytest.fixture
def two(commits: dict[str, int], tmp_path: Path) -> Attempts:
    base = Step("base_model", "base", TrainingSetConfig("starting", size=3, seed=0))
    config = FinetuneConfig()
    members = [
        Step("task_model", slug, TaskModelConfig(config, seed), {"base_model": base}, resources=Resources(max_group=2))
        for seed, slug in enumerate(("left", "right"))
    ]
    return Attempts([base, *members], {base.fingerprint}, tmp_path)


def test_a_lost_machine_does_not_count(alone: Attempts) -> None:
    for _ in range(MAX_LOSSES - 1):
        assert alone.end(LOST) == ["lost"]
    # Nor does it spare a failure of the step's own.
    assert alone.end(FAILED) == ["retry"] and alone.end(FAILED) == ["failed"]
    assert alone.run.progress.losses.total() == MAX_LOSSES - 1


def test_a_step_that_is_lost_again_and_again_without_progress_is_given_up_by_name(
    alone: Attempts, commits: dict[str, int]
) -> None:
    for number in range(3):
        assert alone.end(LOST) == ["lost"]
        commits["step"] = number  # and what was lost before no longer counts
    for _ in range(MAX_LOSSES - 1):
        assert alone.end(LOST) == ["lost"]
    assert alone.end(LOST) == ["failed"]
    (outcome,) = alone.run.progress.failed.values()
    assert outcome.error == f"lost {MAX_LOSSES} times without progress: the machine that it ran on was lost"


def test_a_failure_is_tried_once_more_by_default_whatever_was_committed(alone: Attempts, commits: dict[str, int]) -> None:
    assert alone.end(FAILED) == ["retry"]
    commits["step"] = 1
    assert alone.end(FAILED) == ["failed"]


def test_a_mistake_is_final(alone: Attempts) -> None:
    assert alone.end(FINAL) == ["failed"]


def test_a_process_that_dies_at_one_place_is_the_steps_own_failure(alone: Attempts, commits: dict[str, int]) -> None:
    for number in range(5):
        commits["step"] = number
        assert alone.end(DIED) == ["lost"]
    assert alone.end(DIED) == ["retry"] and alone.end(DIED) == ["failed"]


def of_parts(path: Path, gpus: float, *, num_workers: int = 1, num_gpus: float = 1) -> Attempts:
    """A finetuning on such parts of GPUs."""
    resources = Resources(num_workers=num_workers, gpus_per_worker=gpus)
    base = Step("base_model", "base", TrainingSetConfig("starting", size=3, seed=0))
    step = Step("task_model", "cell", TaskModelConfig(FinetuneConfig(), 0), {"base_model": base}, resources=resources)
    attempts = Attempts([base, step], {base.fingerprint}, path)
    attempts.run.queue.capacity = Capacity(4, num_gpus)
    return attempts


def test_a_step_that_others_left_no_gpu_memory_has_a_gpu_to_itself_before_it_is_given_up(
    commits: dict[str, int], tmp_path: Path
) -> None:
    shared = of_parts(tmp_path, 0.3)
    assert shared.end(FULL) == ["retry"]
    (step,) = shared.run.queue.waiting.values()
    assert step.resources.gpus_per_worker == 0.3
    assert shared.end(FULL) == ["retry"]
    (step,) = shared.run.queue.waiting.values()
    assert step.resources.gpus_per_worker == 1
    (outcome,) = shared.run.progress.retried.values()
    assert outcome.error.endswith("(it asked for 1.88 GiB): it is tried again with a GPU to itself")
    assert shared.end(FULL) == ["failed"]
    (outcome,) = shared.run.progress.failed.values()
    assert outcome.error == (
        "its GPU has no memory left (it asked for 1.88 GiB); it needs a GPU that has more memory, or fewer tokens at once "
        "(tokens_per_microbatch)"
    )


@pytest.mark.parametrize(
    ("outcome", "parts"),
    [
        pytest.param(lambda: FULL, {"gpus": 1}, id="its own already"),
        pytest.param(lambda: FULL, {"gpus": 0.3, "num_workers": 2}, id="fewer GPUs than workers"),
        pytest.param(lambda: FAILED, {"gpus": 0.3}, id="another failure"),
    ],
)
def test_no_other_step_is_given_more_of_a_gpu(
    commits: dict[str, int], tmp_path: Path, outcome: Callable[[], Outcome], parts: dict[str, Any]
) -> None:
    attempts = of_parts(tmp_path, **parts)
    assert attempts.end(outcome()) == ["retry"] and attempts.end(outcome()) == ["failed"]


def one_of_two(path: Path, **options: Any) -> Attempts:
    """A step on a machine that has room for two."""
    attempts = Attempts([Step("starting_set", "step", TrainingSetConfig("starting", size=3, seed=0))], set(), path, **options)
    attempts.run.queue.capacity = Capacity(2, 0)
    return attempts


def test_a_step_that_memory_was_short_for_has_the_machine_to_itself_before_that_counts(
    commits: dict[str, int], tmp_path: Path
) -> None:
    two = one_of_two(tmp_path)
    (step,) = two.run.steps
    commits["step"] = 1  # progress or none
    assert two.end(KILLED) == ["retry"]
    assert two.run.queue.has_all(step) and not two.run.attempts and not two.run.progress.losses
    (said,) = two.run.progress.retried.values()
    assert said.error == "the machine ran low on memory: it is tried again with nothing of this run beside it"
    assert two.end(KILLED) == ["retry"] and two.end(KILLED) == ["failed"]
    (outcome,) = two.run.progress.failed.values()
    assert "low on memory, with nothing of this run beside it; free memory" in outcome.error


def test_nothing_starts_while_another_program_has_the_memory_and_that_is_said(
    commits: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, used = 0.0, 19.5
    monkeypatch.setattr("sweep.run.tune.time.monotonic", lambda: now)
    monkeypatch.setattr("sweep.run.tune.memory_in_use", lambda: (used, 20.0))
    two = one_of_two(tmp_path)
    assert two.end(KILLED) == ["retry"], "nobody looks before memory was short"
    for now in (10.0, 50.0, 70.0, 500.0):  # noqa: B007 - the run's clock
        assert two.run.suggest("none") is None
    assert [event for event, _ in two.events] == ["start", "retry", "waits"]
    (said,) = two.run.progress.waits.values()
    assert said.startswith("19.5 of this machine's 20.0 GB of memory are in use, and above 19.0 GB Ray ends what runs")
    used = 5.0
    assert two.run.suggest("again")
    two.run.complete("again", {"lost": LOST}, error=False)
    used = 19.5
    assert two.run.suggest("another"), "it was no memory that ended it"


def test_workers_that_end_each_time_before_they_take_a_step_on_are_not_started_for_ever(
    alone: Attempts, commits: dict[str, int]
) -> None:
    unmet = Outcome(None, "its workers were lost before it had begun: they cannot start", was_stopped=True, had_begun=False)
    noticed = Outcome(None, "a notice stopped it", was_stopped=True)
    events = [alone.end(outcome) for outcome in [unmet, noticed] * (MAX_LOSSES - 1)]
    assert events == [["retry"]] * 2 * (MAX_LOSSES - 1)
    assert alone.end(unmet) == ["failed"]
    (outcome,) = alone.run.progress.failed.values()
    assert outcome.error.startswith("lost 8 times without progress: its workers were lost before it had begun")


def test_a_process_that_died_on_a_full_disk_of_ray_s_own_says_so_and_is_not_tried_again(
    alone: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.run.tune.full_disk_of_ray", lambda: "/scratch/ray")
    assert alone.run.suggest("trial")
    alone.run.complete("trial", {"lost": Outcome(None, PROCESS_DIED, kind=Kind.DEATH)}, error=False)
    (outcome,) = alone.run.progress.failed.values()
    assert outcome.error == "the disk is full at /scratch/ray; free some space and run the same command again to go on"


def test_what_memory_was_short_for_waits_for_no_whole_cluster_nor_what_was_no_cause(
    alone: Attempts, commits: dict[str, int], tmp_path: Path
) -> None:
    assert alone.end(KILLED) == ["retry"] and alone.end(KILLED) == ["failed"], "it had all there was"
    cluster = one_of_two(tmp_path, look=lambda: Capacity(2, 0))
    assert cluster.end(KILLED) == ["retry"] and not cluster.run.queue.has_all(cluster.run.steps[0])
    assert cluster.end(KILLED) == ["failed"]
    neighbour = one_of_two(tmp_path)
    for outcome in (replace(KILLED, was_neighbour=True), replace(KILLED, was_stopped=True)):
        assert neighbour.end(outcome) == ["retry"] and not neighbour.run.queue.has_all(neighbour.run.steps[0])


def test_a_host_that_was_ended_for_memory_is_known_by_its_outcome_where_the_trial_was_ended_too(two: Attempts) -> None:
    assert two.run.suggest("trial")
    assert isinstance(two.run.hosts, StandInHosts)
    two.run.hosts.outcomes = dict.fromkeys(two.run.lanes["trial"].sent, host_lost(LOW_ON_MEMORY))
    two.run.complete("trial", None, error=True)
    outcomes = list(two.run.progress.retried.values())
    assert [outcome.kind for outcome in outcomes] == [Kind.MEMORY] * 2
    assert {outcome.error for outcome in outcomes} == {
        "Ray ended its process because the machine ran low on memory (7.32 of 23.54 GB were used)"
    }


def test_a_store_that_gives_no_answer_is_waited_for_once_and_not_for_each_step(
    two: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, over = [], Event()
    monkeypatch.setattr("sweep.run.tune.STORE_S", 0.5)
    for name in ("is_taken_over", "keep_log"):
        monkeypatch.setattr(f"sweep.run.tune.{name}", lambda *of: (asked.append(of), over.wait()))
    assert two.run.suggest("trial")
    assert isinstance(two.run.hosts, StandInHosts)
    two.run.hosts.outcomes = dict.fromkeys(two.run.lanes["trial"].sent, host_lost(ray.exceptions.ActorDiedError()))
    two.run.complete("trial", None, error=True)
    over.set()
    assert len(two.run.progress.retried) == 2 and len(asked) == 1


def test_tune_takes_a_trial_that_was_ended_for_memory_for_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        have_tune_survive_low_memory()
    manager, task = Mock(_failed_actor_ids=set()), Mock()
    # As the manager itself calls it.
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=LOW_ON_MEMORY)
    (_, error), _ = task._on_error.call_args
    assert isinstance(error, ray.exceptions.RayActorError) and "running low on memory" in str(error)
    with pytest.raises(RuntimeError, match="unexpected"):
        RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=TypeError("unexpected"))
    monkeypatch.setattr(ray, "get", Mock(side_effect=LOW_ON_MEMORY))
    trial = Mock(_default_result_or_future=ray.ObjectRef(b"1" * 28))
    assert Trial._get_default_result_or_future(trial) is None and trial._default_result_or_future is None


def test_a_group_whose_machine_is_lost_goes_on_together(two: Attempts) -> None:
    neighbour = Outcome(None, MACHINE_LOST, was_neighbour=True, kind=Kind.LOSS)
    assert two.end(neighbour, neighbour) == ["lost", "lost"]
    left = two.run.steps[1]
    record = Record(left.stage, left.slug, left.fingerprint, left.payload, durations={"total_s": 1.0})
    assert two.end(Outcome(record), neighbour) == ["done", "lost"]
    assert two.end(neighbour) == ["lost"]


def test_a_group_whose_process_dies_goes_on_together_if_it_had_got_on_and_else_one_by_one(
    two: Attempts, commits: dict[str, int]
) -> None:
    neighbour = Outcome(None, "its process died", was_neighbour=True, kind=Kind.DEATH)
    commits["right"] = 3  # the left one waits for its turn
    assert two.end(neighbour, neighbour) == ["lost", "lost"]
    assert two.end(neighbour, neighbour) == ["retry", "retry"]
    assert two.end(FAILED) == ["retry"]
    assert not two.run.attempts[two.run.steps[2].fingerprint]


def test_capacity_follows_the_cluster_and_a_wait_is_said_once(
    alone: Attempts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, machines = 0.0, {"CPU": 1.0}

    def ask_at(*times: float) -> None:
        nonlocal now
        for now in times:  # noqa: B007 - the run's clock
            # All that Tune does while nothing runs.
            assert run.suggest("none") is None

    monkeypatch.setattr("sweep.run.tune.time.monotonic", lambda: now)
    monkeypatch.setattr(ray, "cluster_resources", lambda: machines)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("sweep.run.tune._check_own_ray", lambda: None)
    run = alone.run
    run.look = lambda: Capacity(machines["CPU"], 0)
    machines["CPU"] = 0.5
    ask_at(10, 20, 60)
    assert not alone.events
    ask_at(80, 90, 300)
    assert alone.events == [("waits", "step")]
    (said,) = run.progress.waits.values()
    assert said.startswith("it needs 1 CPU, and the cluster's machines have 0.5 CPU, 0 GPU in all by now")
    machines["CPU"] = 4.0
    now = 310.0
    assert run.suggest("one")


@pytest.mark.parametrize(("error", "kind"), [(ValueError("no"), Kind.FAILURE), (NODE_DIED, Kind.LOSS)])
def test_what_a_stage_raises_is_the_outcome_s_kind_and_no_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: Kind
) -> None:
    def fail(job: Job) -> Mapping[str, Any]:
        raise error

    monkeypatch.setitem(REGISTRY, "sources", Stage(1, fail))
    step = Step("sources", "data", TrainingSetConfig("starting", size=3, seed=0))
    outcome = carry_out(Order(step, REGISTRY["sources"], str(tmp_path)))
    assert outcome.record is None and outcome.kind is kind and outcome.was_stopped is False


def test_a_step_whose_store_is_away_waits_for_it_and_goes_on_without_counting(
    alone: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = StoreUnreachableError("s3://bucket: Amazon S3 cannot serve for now")
    looks = Mock(side_effect=[away, away, []])
    monkeypatch.setattr(Store, "names", looks)
    monkeypatch.setattr("sweep.run.trial.AWAY_POLL_S", 0.0)
    monkeypatch.setitem(REGISTRY, "sources", Stage(1, Mock(side_effect=away)))
    step = Step("sources", "data", TrainingSetConfig("starting", size=3, seed=0))
    outcome = carry_out(Order(step, REGISTRY["sources"], str(tmp_path)))
    assert (outcome.kind, outcome.error) == (Kind.AWAY, str(away)) and looks.call_count == 3
    for _ in range(MAX_LOSSES - 1):
        assert alone.end(outcome) == ["lost"]
    assert alone.end(outcome) == ["failed"]


def test_workers_that_were_lost_before_a_step_had_begun_say_of_what_and_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(job: Job) -> Mapping[str, Any]:
        raise NotBegunError("of workers") from RuntimeError("No CUDA GPUs are available")

    monkeypatch.setitem(REGISTRY, "sources", Stage(1, lose))
    step = Step("sources", "data", TrainingSetConfig("starting", size=3, seed=0))
    outcome = carry_out(Order(step, REGISTRY["sources"], str(tmp_path)))
    assert outcome.was_stopped
    assert outcome.error == "its workers were lost before it had begun: RuntimeError: No CUDA GPUs are available"
    assert "No CUDA GPUs" in Path(outcome.log).read_text()
