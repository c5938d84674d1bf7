"""MLflow's client where another one writes the same at the same time."""

from unittest.mock import Mock

import pytest

from sweep.index import client as module
from sweep.index.client import Client

QUICKER = RuntimeError("(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key, experiment_tags.experiment_id")


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mock:
    mlflow = Mock()
    monkeypatch.setattr(module, "mlflow_client", lambda uri: mlflow)
    return mlflow


def test_a_tag_that_another_client_was_quicker_to_set_is_set_over_it(mlflow: Mock) -> None:
    mlflow.set_experiment_tag.side_effect = [QUICKER, None]
    assert Client("uri").set_experiment_tag("1", "key", "value") is None
    assert [call.args for call in mlflow.set_experiment_tag.call_args_list] == [("1", "key", "value")] * 2


@pytest.mark.parametrize(("name", "error"), [("set_tag", RuntimeError("locked")), ("create_run", QUICKER)])
def test_nothing_else_is_done_twice(name: str, error: Exception, mlflow: Mock) -> None:
    call = getattr(mlflow, name)
    call.side_effect = [error, None]
    with pytest.raises(RuntimeError):
        getattr(Client("uri"), name)("1")
    assert call.call_count == 1
