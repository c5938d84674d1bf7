"""Work in one Ray task, or in this process."""

import os

from pipelines.resources import Resources
from pipelines.workers.one_task import in_one_task


def where(name: str, use_gpu: bool) -> tuple[str, bool, int]:
    os.environ["LEFT_BEHIND"] = os.environ.get("LEFT_BEHIND", "") + name
    return os.environ["LEFT_BEHIND"], use_gpu, os.getpid()


def test_each_task_has_a_process_of_its_own_unless_it_is_to_be_done_here(ray_two_cpus, monkeypatch) -> None:
    first, second = (in_one_task(where, Resources(), name) for name in ("a", "b"))
    assert first[:2] == ("a", False) and second[:2] == ("b", False), "nothing is left of another one's environment"
    assert os.getpid() not in (first[2], second[2]) and first[2] != second[2]
    monkeypatch.setenv("LEFT_BEHIND", "")
    assert in_one_task(where, Resources(in_process=True), "c") == ("c", False, os.getpid())
