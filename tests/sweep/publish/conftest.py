"""One small study, for all tests of what is taken out of it."""

import pytest

from sweep.graph.records import Record, Store
from tests.sweep.publish.small_study import write_study


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Record]]:
    return write_study(tmp_path_factory.mktemp("store"))
