"""What a worker's process imports."""

import importlib
import subprocess
import sys

import pytest

from pipelines.models.process import without_modules

LOADED = """
import sys
print("loaded:", [name for name in ("mlflow", "sklearn") if name in sys.modules])
import mlflow
"""
SET_UP = """
from pipelines.finetune.driver import _set_up

_set_up(use_gpu=False, num_threads=1)
import deepspeed, pipelines.finetune.alone
"""
EVALUATES = """
from pipelines.evaluate.evaluation import worker_device

worker_device(False)
from transformers import AutoModel, AutoTokenizer
"""


def test_a_module_that_is_hidden_is_not_installed_until_later_and_one_that_is_loaded_stays() -> None:
    sys.modules.pop("colorsys", None)
    with without_modules("colorsys", "json"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json")
    assert importlib.import_module("colorsys")


@pytest.mark.slow
@pytest.mark.parametrize("begins", [SET_UP, EVALUATES])
def test_a_worker_that_is_set_up_has_loaded_nothing_that_only_others_need(begins: str) -> None:
    done = subprocess.run([sys.executable, "-c", begins + LOADED], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "loaded: []" in done.stdout
