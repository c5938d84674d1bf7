"""The stages of `fake_study`, in the place of the real ones."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sweep.graph import stages


@pytest.fixture(scope="module")
def fake() -> Iterator[ModuleType]:
    """`fake_study` with its stages registered; in a session of Ray it is to be pickled by value."""
    specification = importlib.util.spec_from_file_location("fake_study", Path(__file__).with_name("fake_study.py"))
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["fake_study"] = module
    specification.loader.exec_module(module)
    kept = dict(stages.REGISTRY)
    module.register()
    yield module
    stages.REGISTRY.update(kept)
