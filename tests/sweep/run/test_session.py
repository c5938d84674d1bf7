"""What a run may use of this machine or a cluster, and the refusal of steps that need more."""

import os

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.resources import Resources
from sweep.graph.queue import check_resources
from sweep.graph.step import Step
from sweep.run import session
from sweep.run.session import RayOptions, cluster_capacity, local_capacity

GPU = Resources(gpus_per_worker=1)


@pytest.mark.parametrize(
    ("options", "resources", "message"),
    [
        (
            RayOptions(max_gpus=0),
            GPU,
            "1 GPU; by --max-gpus this run may use none, and this machine has 8: raise --max-gpus, or",
        ),
        (RayOptions(max_gpus=2), Resources(3, 0, 1), "3 GPU; by --max-gpus this run may use 2, and this machine has 8: raise"),
        (
            RayOptions(max_gpus=2),
            Resources(9, 0, 1),
            "9 GPU; by --max-gpus this run may use 2, and this machine has 8: choose the",
        ),
        (RayOptions(max_cpus=1), Resources(2), "2 CPU; by --max-cpus this run may use 1, and this machine has 4: lower"),
        (RayOptions(max_cpus=6), Resources(7), "7 CPU; by --max-cpus this run may use 6, and this machine has 4: lower"),
        (RayOptions(max_cpus=4, max_gpus=9), Resources(9, 0, 1), "9 GPU; this machine has 8: choose the"),
    ],
)
def test_a_refusal_says_which_option_gave_too_little(
    options: RayOptions, resources: Resources, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "local_resources", lambda: {"CPU": 4, "GPU": 8})
    one = Step("generator", "generator", TrainingSetConfig("starting", 1, 0), resources=resources)
    with pytest.raises(UserError, match=f"needs {message}"):
        check_resources([one], local_capacity(options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RayOptions("auto"), "1 GPU; the cluster has none: choose the"),
        (RayOptions("auto", max_gpus=0.5), "1 GPU; by --max-gpus this run may use 0.5, and the cluster has none: choose the"),
        (RayOptions("auto", max_cpus=1), "2 CPU; by --max-cpus this run may use 1, and the cluster has 4: lower"),
    ],
)
def test_a_refusal_on_a_cluster_is_the_cluster_s(options: RayOptions, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "live_nodes", lambda: [{"Resources": {"CPU": 2}}] * 2)
    monkeypatch.setattr(session, "_autoscaler", lambda: None)
    resources = GPU if "GPU" in message else Resources(2)
    one = Step("generator", "generator", TrainingSetConfig("starting", 1, 0), resources=resources)
    with pytest.raises(UserError, match=f"needs {message}"):
        check_resources([one], cluster_capacity(options))


def test_rays_own_files_are_where_its_sockets_have_short_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = "/" + "x" * (session.MOST_FOLDER - 1)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", longest)
    session._set_folder()
    assert "RAY_TMPDIR" not in os.environ and capsys.readouterr().err == ""
    # What Ray makes of it: Linux takes 107 bytes.
    assert len(f"{longest}/ray/session_2026-12-01_10-36-57_581790_4194304/sockets/plasma_store") == 107
    monkeypatch.setenv("TMPDIR", f"{longest}y")
    session._set_folder()
    assert os.environ["RAY_TMPDIR"] == "/tmp" and f"Warning: TMPDIR={longest}y is longer than" in capsys.readouterr().err
    monkeypatch.setenv("RAY_TMPDIR", f"{longest}y")
    with pytest.raises(UserError, match=r"RAY_TMPDIR=.* is longer than \d+ bytes, .* set a shorter one"):
        session._set_folder()
