"""What is said without the engine's packages."""

import pytest

from pipelines import extras
from pipelines.errors import UserError


def test_what_is_missing_is_named_with_the_way_out() -> None:
    extras.check_installed("this test", "pytest")
    with pytest.raises(
        UserError, match=r"^blindsweep run needs no_such, which is not installed: the extra cuda or cpu brings it; .*make"
    ):
        extras.check_installed("blindsweep run", "pytest", "no_such")


def test_an_import_that_fails_for_want_of_the_engine_alone_is_told_so() -> None:
    assert "needs torch, which" in str(extras.of_missing_package(ModuleNotFoundError("…", name="torch.nn")))
    assert extras.of_missing_package(ModuleNotFoundError("…", name="torchless")) is None
    assert extras.of_missing_package(ImportError("…", name="torch")) is None
