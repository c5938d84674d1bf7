"""A lane's jobs: each one's own result as it ends, whatever becomes of the others."""

import os
import threading
import time

import pytest

from pipelines.errors import NeighbourFailedError, NotBegunError
from pipelines.workers.lane import Desk, Intake, Lane, shared_job


def squares(desk):
    """One job after another, until no more comes."""
    intake = Intake(desk)
    while intake.wait():
        number, job = intake.begin()
        intake.end(number, ValueError(f"{job}: give a number from 0 on") if job < 0 else {"square": job * job})


def test_jobs_in_the_process_itself_are_done_when_the_lane_is_closed():
    lane = Lane(squares, str, in_process=True)
    numbers = [lane.put(job) for job in (2, -1, 3)]
    lane.close()
    assert lane.result(numbers[0])[0] == {"square": 4} and lane.result(numbers[2])[0] == {"square": 9}
    with pytest.raises(ValueError, match="-1: give a number"):
        lane.result(numbers[1])


def test_jobs_that_are_under_way_at_once_share_the_lane_s_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr("pipelines.workers.lane.time.monotonic", lambda: now)
    desk = Desk()
    one, two = desk.put("one"), desk.put("two")
    now += 4  # the start, of both
    desk.take(0)
    desk.begin(one)
    now += 3  # of the first alone
    desk.begin(two)
    now += 10
    desk.end(one, {})
    now += 1
    desk.end(two, {})
    now += 50  # nothing is there
    three = desk.put("three")
    now += 2
    desk.begin(three)
    desk.end(three, {})
    assert [desk.result(number)[1].share_s for number in (one, two, three)] == [2 + 3 + 5, 2 + 5 + 1, 2]


def test_a_job_that_all_workers_do_together_is_waited_for_and_its_end_is_said():
    desk = Desk()
    assert shared_job(desk, wait=False) is None
    seen = []
    workers = [threading.Thread(target=lambda: seen.append(shared_job(desk))) for _ in range(3)]
    for worker in workers:
        worker.start()
    number = desk.put("the job")
    for worker in workers:
        worker.join(5)
    assert seen == ["the job"] * 3 and shared_job(desk, wait=False) == "the job"
    desk.end(number, {})
    times = desk.result(number)[1]
    assert 0 < times.up <= times.began <= times.ended
    empty = Desk()
    empty.close()
    with pytest.raises(NotBegunError, match="ended before"):
        shared_job(empty)


def loses(*, begun: int, put: int):
    """What each of `put` jobs ends with, the first `begun` of which were taken on when the workers were lost."""

    def serve(desk):
        intake = Intake(desk)
        intake.look()
        for _ in range(begun):
            intake.begin()
        raise ConnectionError("a machine went away")

    lane = Lane(serve, str, in_process=True)
    numbers = [lane.put(job) for job in range(put)]
    lane.close()
    errors = []
    for number in numbers:
        with pytest.raises(Exception, match="a machine went away") as caught:
            lane.result(number)
        errors.append(type(caught.value))
    return errors


def test_who_is_at_fault_when_workers_are_lost():
    assert loses(begun=1, put=1) == loses(begun=0, put=1) == [ConnectionError]
    assert loses(begun=1, put=3) == [ConnectionError, NotBegunError, NotBegunError]
    assert loses(begun=2, put=3) == [NeighbourFailedError, NeighbourFailedError, NotBegunError]
    # Whatever killed them before they had begun may be any one's doing.
    assert loses(begun=0, put=2) == [NeighbourFailedError, NeighbourFailedError]


class Unpacked:
    """Becomes the process that first looks into it."""

    def __reduce__(self):
        return os.getpid, ()


class SlowToBegin(Desk):
    def begin(self, number):
        time.sleep(0.3)
        super().begin(number)


def test_jobs_join_workers_in_another_process_and_what_has_ended_stays(ray_two_cpus, monkeypatch):
    import ray

    # Calls of an actor with threads may overtake each other.
    monkeypatch.setattr("pipelines.workers.lane.Desk", SlowToBegin)

    def work(desk):
        intake = Intake(desk)
        while intake.wait():
            number, job = intake.begin()
            if job == "die":
                os._exit(1)
            intake.end(number, {"by": os.getpid(), "at": time.time(), "job": job})

    lane = Lane(lambda desk: ray.get(ray.remote(work).options(max_retries=0).remote(desk)), str, in_process=False)
    first, times = lane.run("one")
    second, _ = lane.run(Unpacked())
    assert first["by"] == second["by"] == second["job"] != os.getpid()
    assert 0 < times.up <= times.began <= times.ended and times.share_s > 0
    # What a worker dies of at once has begun, and what waits beside it has not.
    deadly, waiting = lane.put("die"), lane.put("waits")
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        lane.result(deadly)
    for number in (waiting, lane.put("too late")):
        with pytest.raises(NotBegunError):
            lane.result(number)
    lane.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "lane" and thread.is_alive()]
