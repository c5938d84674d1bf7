"""What fails may have secrets in its text; logs, manifest and MLflow, which others read, have none of them."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.training_set import TrainingSetConfig
from pipelines.errors import UserError
from pipelines.generate.config import GenerationConfig
from pipelines.generate.options import engine_environment
from pipelines.resources import Resources
from sweep.commands.options import _explain
from sweep.graph.records import Store, Study, StudyStep
from sweep.graph.stages import Job, Stage
from sweep.graph.step import Step
from sweep.run.failures import one_line, without_secrets
from sweep.run.tracking import Card, Tracker
from sweep.run.trial import Order, carry_out

SECRETS = {
    "HF_TOKEN": "token-of-the-hub",
    "AWS_SECRET_ACCESS_KEY": "/wJalr+Utn FEMI",
    "AWS_SESSION_TOKEN": "4711-session",
    "MLFLOW_TRACKING_PASSWORD": "pass'word",
    "RAY_AUTH_TOKEN": "0123456789abcdef",
    "WANDB_API_KEY": "key-of-a-tracker",
}
ADDRESS = "postgresql://someone:of-the-address@127.0.0.1/mlflow"
IN_TEXTS = {
    "https://someone:pass-4711@host/path": "https://someone:***@host/path",
    "https://ghp4711ghp4711ghp4711ghp4711@host/x.git": "https://***@host/x.git",
    "GET https://b.s3.amazonaws.com/k?X-Amz-Credential=AK%2F1&X-Amz-Signature=abc4711&versionId=3": (
        "GET https://b.s3.amazonaws.com/k?X-Amz-Credential=***&X-Amz-Signature=***&versionId=3"
    ),
    "https://storage.googleapis.com/b/k?X-Goog-Signature=4711": "https://storage.googleapis.com/b/k?X-Goog-Signature=***",
    "https://a.blob.core.windows.net/c?sv=2020&sig=4711%3D": "https://a.blob.core.windows.net/c?sv=2020&sig=***",
    "https://host/?access_token=4711'": "https://host/?access_token=***'",
    "{'Authorization': 'Bearer 4711'}": "{'Authorization': 'Bearer ***'}",
    "hf_" + "a1B2" * 9: "hf_***",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (SECRETS | {"MLFLOW_TRACKING_URI": ADDRESS}).items():
        monkeypatch.setenv(name, value)
    # Named like secrets, and none.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path))


def leaking(kind: type[Exception], job: Job) -> Mapping[str, Any]:
    try:
        raise ValueError(f"{'x' * 390} {list(SECRETS.values())} {ADDRESS}")
    except ValueError as error:
        raise kind("; ".join([*SECRETS.values(), *IN_TEXTS, "of-the-address", "all said"])) from error


def leaks(text: str) -> list[str]:
    secrets = [*SECRETS.values(), "4711", "of-the-address", "a1B2", "pass\\'word"]
    return [secret for secret in secrets if secret in text or secret[:6] in text]


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_a_failure_s_secrets_are_kept_nowhere(kind: type[Exception], tmp_path: Path) -> None:
    store, uri = Store(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db"
    step = Step("sources", "data", TrainingSetConfig("starting", size=3, seed=0))
    outcome = carry_out(Order(step, Stage(1, functools.partial(leaking, kind)), store.uri))
    log = Path(outcome.log).read_text()
    assert "all said" in log and "ValueError: xxx" in log and outcome.record is None
    if kind is UserError:
        assert leaks(outcome.error + log) == []
        return
    Tracker(uri, store.uri, Study("mine", "", {}, ())).start(Card.of(step))
    tracker = Tracker(uri, store.uri, Study("mine", "", {}, ()))
    tracker.fail(step.fingerprint, outcome.error)
    assert tracker.errors == [] and tracker.client.get_run(tracker.runs[step.fingerprint].info.run_id).data.tags["error"]
    failure = {"stage": step.stage, "slug": step.slug, "fingerprint": step.fingerprint, "error": outcome.error}
    Study("mine", "", {}, (StudyStep(step.stage, step.slug, step.fingerprint, {}, {}),), (failure,)).save(store)
    assert leaks(outcome.error) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mine.json", "mlflow.db", Path(outcome.log).name} <= {path.name for path in files}
    assert {path.name: found for path in files if (found := leaks(path.read_bytes().decode(errors="replace")))} == {}


def test_a_secret_that_would_be_cut_is_not_shown_in_part() -> None:
    line = one_line(RuntimeError("x" * 390 + SECRETS["RAY_AUTH_TOKEN"]))
    assert line.endswith("x***")


def test_a_command_s_own_traceback_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    message = _explain(KeyError(SECRETS["HF_TOKEN"]))
    file = Path(message.rpartition("is in ")[2].rstrip(")"))
    text = file.read_text()
    file.unlink()
    assert "KeyError: '***'" in text and leaks(text + message) == []


@pytest.mark.parametrize("text", IN_TEXTS)
def test_what_looks_like_a_secret_is_hidden_wherever_it_is_from(text: str) -> None:
    assert without_secrets(text) == IN_TEXTS[text]


def test_other_texts_stay_as_they_are(tmp_path: Path) -> None:
    for text in (
        "s3://bucket/a@b",
        f"http://127.0.0.1:5000/#/?view=kinds is false: {tmp_path}",
        "tokens_per_s=3",
        "key 'a' is new",
    ):
        assert without_secrets(text) == text


def test_an_engine_s_runtime_environment_has_no_secret() -> None:
    """Ray prints runtime environments; the hub's token is inherited."""
    values = engine_environment(GenerationConfig(num_per_label=1, seed=0), Resources())
    assert leaks(str(values)) == [] and not set(values) & {*SECRETS, "HF_TOKEN"}
