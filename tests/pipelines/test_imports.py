"""What a worker's process imports, and how."""

import importlib
import os
import subprocess
import sys

import pytest

from pipelines.imports import without_compiler, without_modules

LOADED = """
import sys
assert "transformers" in sys.modules
print("loaded:", [name for name in ("mlflow", "sklearn", "torch._inductor.compile_fx") if name in sys.modules])
import mlflow
"""
FINETUNES = """
import tempfile
from pipelines.finetune.driver import finetuning_lane
from pipelines.resources import Resources

with tempfile.TemporaryDirectory() as folder:
    finetuning_lane(folder, Resources(in_process=True), expected=1).close()
import pipelines.finetune.alone
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # as ZeRO does before the first step
"""
EVALUATES = """
from pipelines.evaluate.evaluation import worker_device

worker_device(False)
from transformers import AutoModel, AutoTokenizer
"""
GENERATES = """
from contextlib import suppress
from pipelines.generate.config import GenerationConfig
from pipelines.generate.writer import ShardWriter
from pipelines.resources import Resources

with suppress(ValueError):  # there is no tokenizer
    ShardWriter(GenerationConfig(num_per_label=1), "docs", "/no/output", "", Resources())
"""
SAVES = """
import sys, tempfile
from pathlib import Path
from pipelines.finetune.base_model import import_libraries

import_libraries()
from pipelines.models.model_files import save_model
from transformers import LlamaConfig, LlamaForCausalLM

shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
with tempfile.TemporaryDirectory() as folder:
    save_model(LlamaForCausalLM(LlamaConfig(**shape)), Path(folder))
    assert (Path(folder) / "model.safetensors").exists()
assert "deepspeed" not in sys.modules
"""
LASTING = """
import gc, sys
from pipelines.imports import lasting_imports

with lasting_imports():
    assert not gc.isenabled()
    import colorsys
assert gc.isenabled() and gc.get_freeze_count() > 1_000
num_frozen, ours = gc.get_freeze_count(), [[] for _ in range(1_000)]
with lasting_imports():
    import colorsys
assert gc.isenabled() and gc.get_freeze_count() <= num_frozen, "there was nothing to import"
gc.disable()
with lasting_imports():
    import stringprep
assert not gc.isenabled() and gc.get_freeze_count() > num_frozen
"""


def ran(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def test_a_module_that_is_hidden_is_not_installed_until_later_and_one_that_is_loaded_stays() -> None:
    sys.modules.pop("colorsys", None)
    with without_modules("colorsys", "json"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json")
    assert importlib.import_module("colorsys")


def test_garbage_is_looked_for_when_all_is_imported_and_not_there_afterwards() -> None:
    ran(LASTING)


@pytest.mark.parametrize("before", [None, "0"])
def test_a_setting_of_torchs_compiler_is_as_it_was_afterwards(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCHDYNAMO_DISABLE"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with without_compiler():
        assert os.environ[name] == "1"
    assert os.environ.get(name) == before


@pytest.mark.slow
@pytest.mark.parametrize("begins", [FINETUNES, EVALUATES, GENERATES, SAVES])
def test_a_worker_that_is_set_up_has_loaded_nothing_that_only_others_need(begins: str) -> None:
    assert "loaded: []" in ran(begins + LOADED)


BUILDS_WHILE_IMPORTING = """
import sys, threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.finetune.base_model import ScratchModelConfig, import_libraries, prepare_base_model

folder = sys.argv[1]
Path(folder, "sources").mkdir()
rows = {"id": ["a"], "premise": ["A judge slept."], "hypothesis": ["He was up."], "label": ["contradiction"]}
pq.write_table(pa.table(rows), f"{folder}/sources/train.parquet")
is_under_way, may_go_on = threading.Event(), threading.Event()


class Slowly:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("transformers.") and not is_under_way.is_set():
            is_under_way.set()
            may_go_on.wait(2)


sys.meta_path.insert(0, Slowly())
ahead = threading.Thread(target=import_libraries)
ahead.start()
is_under_way.wait()
shape = ScratchModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, vocabulary_size=270)
print("parameters:", prepare_base_model(shape, f"{folder}/base", sources=f"{folder}/sources")["num_parameters"])
ahead.join()
"""


def test_a_base_model_is_made_while_another_thread_imports(tmp_path):
    command = [sys.executable, "-c", BUILDS_WHILE_IMPORTING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("parameters: ")
