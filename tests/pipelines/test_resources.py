import pickle

import pytest

from pipelines.errors import UserError
from pipelines.resources import Resources, no_report


def test_bundle_of_one_worker_leaves_out_what_is_zero():
    assert Resources().as_bundle() == {"CPU": 1}
    assert Resources(2, cpus_per_worker=4, gpus_per_worker=0.5).as_bundle() == {"CPU": 4, "GPU": 0.5}
    assert Resources(cpus_per_worker=0, gpus_per_worker=1).as_bundle() == {"GPU": 1}


def test_totals_are_over_all_workers():
    resources = Resources(num_workers=3, cpus_per_worker=2, gpus_per_worker=0.5)
    assert (resources.total_cpus, resources.total_gpus) == (6, 1.5)


@pytest.mark.parametrize(
    "arguments",
    [{"num_workers": 0}, {"cpus_per_worker": -1}, {"gpus_per_worker": float("nan")}, {"cpus_per_worker": 0}],
)
def test_impossible_resources_are_refused(arguments):
    with pytest.raises(UserError):
        Resources(**arguments)


def test_no_report_crosses_processes():
    assert pickle.loads(pickle.dumps(no_report)) is no_report


def test_only_one_worker_can_be_the_driving_process():
    assert Resources(in_process=True).in_process
    with pytest.raises(UserError, match="in_process=True with num_workers=2"):
        Resources(in_process=True, num_workers=2)
