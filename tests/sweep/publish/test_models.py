"""An exported task model loads where the product is not, and says in its folder what it is."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from analysis.cards.card import check_card
from analysis.cards.licences import LLAMA_2
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples
from pipelines.tasks.nli import LABELS, NLI
from sweep import cli
from sweep.graph.records import Record, Store
from sweep.publish.models import export_model
from sweep.publish.origins import Said, hub_name, origin_of, results_of
from tests.sweep.publish.small_study import MODEL


def test_it_answers_as_the_evaluation_recorded(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    result = CliRunner().invoke(cli.app, ["export", MODEL, str(tmp_path / "model"), "--store", store.uri])
    assert result.exit_code == 0, result.output
    assert f"task_model/{MODEL} as LlamaForSequenceClassification: {tmp_path}/model" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    examples = read_examples(f"{store.folder(records['sources/data'].id)}/template_test.parquet").to_pylist()
    encoded = tokenizer([NLI.classified(row) for row in examples], padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**encoded).logits
    import pyarrow.parquet as pq

    table = pq.read_table(f"{store.folder(records[f'evaluation/{MODEL}'].id)}/logits.parquet")
    expected = torch.tensor([table[f"logit_{label}"].to_pylist() for label in LABELS]).T
    assert expected.std(0).min() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (three, two) = results_of(store, records[f"task_model/{MODEL}"])
    right = (found.argmax(1) == torch.tensor([NLI.index(row["label"]) for row in examples])).sum().item()
    assert (three.num_labels, three.num_correct, three.num_examples) == (3, right, 40) and two.num_labels == 2
    card = (tmp_path / "model" / "README.md").read_text()
    check_card(card, "model")
    assert ModelCard(card).data.eval_results[0].metric_value == three.value
    origin = json.loads((tmp_path / "model" / "blindsweep.json").read_text())
    assert origin["fingerprint"] == records[f"task_model/{MODEL}"].fingerprint
    assert origin["task"]["classifier_prompt"] == NLI.classifier_prompt and origin["files"]["form"] == "whole"
    assert "synthetic_pool/pool-0004000000a3" in [each["artifact"] for each in origin["built_from"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-like-it", "OUT"], "no built artifact 'nothing-like-it'"),
        ([MODEL, "OUT", "--license", "mine"], "--license mine: the hub has no such identifier; near:"),
        ([MODEL, "OUT", "--dtype", "int4"], "--dtype int4: give one of auto, float32, bfloat16, float16"),
        ([MODEL, "OUT", "--language", "English"], "--language English: give an ISO 639 code, such as en"),
        ([MODEL, "."], ". is there and not empty; name a folder that is not there"),
    ],
)
def test_what_cannot_be_exported_is_one_error_and_writes_nothing(
    built: tuple[Store, dict[str, Record]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "mine").write_text("text")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["export", *words, "--store", built[0].uri])
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("Error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_base_of_the_hub_is_named_with_its_licence(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    shutil.copytree(store.uri, tmp_path / "store")
    copy, base = Store(tmp_path / "store"), records["base_model/base"]
    config = {"type": "PretrainedModelConfig", "revision": f"meta-llama/Llama-2-7b-hf@{'a' * 40}", "quantization": "nf4"}
    copy.write_record(dataclasses.replace(base, payload={"config": config}))
    lineage = origin_of(copy, records[f"task_model/{MODEL}"], Said())
    assert [(each.hub_name, each.commit, each.licence, each.quantized) for each in lineage.bases] == [
        ("meta-llama/Llama-2-7b-hf", "a" * 40, LLAMA_2, "nf4")
    ]
    assert hub_name(base) == ("", "")
    export_model(copy, records[f"task_model/{MODEL}"], tmp_path / "model", Said(licence="mit"))
    data = ModelCard((tmp_path / "model" / "README.md").read_text()).data
    assert (data.license, data.base_model) == ("llama2", ["meta-llama/Llama-2-7b-hf"])


def test_a_damaged_artifact_is_not_exported(built: tuple[Store, dict[str, Record]], tmp_path: Path) -> None:
    store, records = built
    shutil.copytree(store.uri, tmp_path / "store")
    copy, model = Store(tmp_path / "store"), records[f"task_model/{MODEL}"]
    (Path(copy.folder(model.id)) / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="verify --set-aside"):
        export_model(copy, model, tmp_path / "model", Said())
    assert not (tmp_path / "model").exists()
