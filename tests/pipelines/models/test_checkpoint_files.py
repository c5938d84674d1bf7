"""Damaged and hostile checkpoints, made on the spot: refused by name, within little memory, and no code of theirs runs."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config
from pipelines.models.tokenizer import load_tokenizer
from tests.pipelines.models.test_weights import write_gguf

ROOT = Path(__file__).parents[3]
WEIGHT = "model.layers.1.mlp.down_proj.weight"
AGAIN = "copy or download it again"

# Prepares each folder or file that it is given, with 2 GB of address space beyond what the libraries took; "y" is on its stdin.
PROGRAM = """
import json, resource, signal, sys, traceback
from pathlib import Path
import torch, transformers, gguf, transformers.models.llama.modeling_llama
from pipelines.errors import UserError
from pipelines.finetune.base_model import prepare_base_model, pretrained_model_config, random_model_config

taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), -1))
def too_late(*_):
    raise TimeoutError("took 30 s")
signal.signal(signal.SIGALRM, too_late)
for line in Path(sys.argv[1]).read_text().splitlines():
    name, path, options = json.loads(line)
    signal.alarm(30)
    try:
        describe = random_model_config if options.pop("random", False) else pretrained_model_config
        metrics = prepare_base_model(describe(path, dtype="float32", **options), str(Path(sys.argv[2], name)))
        answer = {"metrics": metrics}
    except UserError as error:
        answer = {"error": str(error)}
    except BaseException as error:
        answer = {"raw": traceback.format_exc()[-1500:]}
    signal.alarm(0)
    print("ANSWER", json.dumps([name, answer]), flush=True)
"""

CASES: dict[str, tuple[Callable[[Path], object], str]] = {}
"""What is done to a good checkpoint, and the words of the error. It may return the path that the user gives, if another."""


def case(words: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    def add(damage: Callable[[Path], object]) -> Callable[[Path], object]:
        CASES[damage.__name__] = (damage, words)
        return damage

    return add


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_value(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[WEIGHT].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def header(folder: Path, content: object, *, length: int | None = None) -> None:
    text = json.dumps(content).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def index(folder: Path, file: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {WEIGHT: file}}))


def raw_gguf(folder: Path, content: bytes) -> Path:
    (folder / "model.gguf").write_bytes(content)
    return folder / "model.gguf"


def edited_gguf(folder: Path, old: bytes, new: bytes) -> Path:
    write_gguf(folder / "model.gguf", None)
    content = (folder / "model.gguf").read_bytes()
    assert content.count(old) == 1
    return raw_gguf(folder, content.replace(old, new))


@case(rf"/config\.json is not JSON \(.*\): {AGAIN}")
def config_cut_short(folder):
    (folder / "config.json").write_text("{")


@case(rf"/config\.json holds a JSON list where an object is needed: {AGAIN}")
def config_is_a_list(folder):
    (folder / "config.json").write_text("[]")


@case(r"/config\.json is not JSON \(.*recursion")
def config_is_nested_deeply(folder):
    (folder / "config.json").write_text("[" * 200_000)


@case(r"/config\.json is not JSON \(.*utf-8")
def config_is_not_text(folder):
    (folder / "config.json").write_bytes(b'{"model_type": "\xff"}')


@case(r"/config\.json has 1,099,511,627,776 bytes, which no checkpoint's JSON has")
def config_of_a_terabyte(folder):
    os.truncate(folder / "config.json", 1 << 40)


@case(r"/config\.json names no model_type")
def config_without_a_type(folder):
    (folder / "config.json").write_text("{}")


@case(r"/config\.json has num_hidden_layers=10000000, where a whole number from 1 to 20 is possible")
def ten_million_layers(folder):
    edit(folder / "config.json", num_hidden_layers=10**7)


@case(r"/config\.json has hidden_size=1000000000000, where a whole number from 1 to 400 is possible")
def a_huge_hidden_size(folder):
    edit(folder / "config.json", hidden_size=10**12)


@case(r"/config\.json has head_dim=1000000000, where")
def a_huge_head(folder):
    edit(folder / "config.json", head_dim=10**9)


@case(r"/config\.json has num_attention_heads=0, where")
def no_heads(folder):
    edit(folder / "config.json", num_attention_heads=0)


@case(r"/config\.json has vocab_size='400', where a whole number")
def a_size_in_quotes(folder):
    edit(folder / "config.json", vocab_size="400")


@case(r"/config\.json has max_position_embeddings=-1, where")
def negative_positions(folder):
    edit(folder / "config.json", max_position_embeddings=-1)


@case(r"/config\.json has attn_implementation='someone/kernel', code from elsewhere, which is never run: remove that line")
def a_kernel_from_the_hub(folder):
    edit(folder / "config.json", attn_implementation="someone/kernel")


@case(r"/config\.json has model_type='evil', none of those that are known .*, and code .* is never run: take a model of one")
def a_model_with_code_of_its_own(folder):
    hostile_code(folder)
    edit(folder / "config.json", model_type="evil", architectures=["Evil"])


def hostile_code(folder: Path) -> None:
    program = f"open({str(folder / 'RAN')!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n"
    (folder / "evil.py").write_text(program)
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})


@case(rf"/model\.safetensors is no whole safetensors file \(.*(incomplete|not fully covered).*\): {AGAIN}")
def weights_cut_short(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


@case(r"/model\.safetensors is no whole safetensors file")
def weights_of_no_bytes(folder):
    os.truncate(folder / "model.safetensors", 0)


@case(r"/model\.safetensors is no whole safetensors file \(.*too large")
def a_header_longer_than_its_file(folder):
    header(folder, {}, length=1 << 60)


@case(r"/model\.safetensors is no whole safetensors file")
def a_tensor_longer_than_its_file(folder):
    header(folder, {WEIGHT: {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}})


@case(r"/model\.safetensors is no whole safetensors file")
def a_shape_unlike_its_bytes(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    assert content.count(b'"shape":[400,64]') == 1
    path.write_bytes(content.replace(b'"shape":[400,64]', b'"shape":[900,64]'))


@case(rf"lacks 1 tensors that LlamaForCausalLM needs \({WEIGHT}\)")
def a_tensor_is_missing(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors[WEIGHT]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@case(rf"/model\.safetensors has NaN or infinite values in {WEIGHT}: {AGAIN}, .*or take a checkpoint from before")
def a_weight_is_nan(folder):
    set_value(folder, float("nan"))


@case(rf"/model\.safetensors has NaN or infinite values in {WEIGHT}")
def a_weight_is_infinite(folder):
    set_value(folder, float("-inf"))


@case(r"/model\.safetensors\.index\.json looks for .* in '\.\./\.\./etc/passwd', outside its folder: take the checkpoint from")
def an_index_leaves_its_folder(folder):
    index(folder, "../../etc/passwd")


@case(r"/model\.safetensors\.index\.json looks for .* in '/etc/passwd', outside its folder")
def an_index_of_absolute_paths(folder):
    index(folder, "/etc/passwd")


@case(
    r"index\.json looks for .* in 'model-00002-of-00002\.safetensors', which is not in its folder: copy or download that file"
)
def an_index_of_a_file_that_is_not_there(folder):
    index(folder, "model-00002-of-00002.safetensors")


@case(r"/model\.safetensors\.index\.json has no weight_map")
def an_index_of_numbers(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')


@case(r"/model\.safetensors is a link out of its folder, to .*/outside, .*put the file itself in its place")
def a_link_leaves_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "outside")
    (folder / "model.safetensors").symlink_to(folder.parent / "outside")


@case(r"/special_tokens_map\.json is a link out of its folder, to /etc/passwd")
def a_link_to_a_file_of_the_system(folder):
    (folder / "special_tokens_map.json").symlink_to("/etc/passwd")


@case(r"/model\.safetensors is not there, or is a link that leads nowhere")
def a_link_in_a_circle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


@case(r"/vocab\.json is no regular file")
def a_pipe_that_nobody_writes(folder):
    os.mkfifo(folder / "vocab.json")


@case(r"transformers cannot read its tokenizer \(.*\): copy or download it again")
def a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


@case(r"/tokenizer_config\.json is not JSON")
def broken_settings_of_the_tokenizer(folder):
    (folder / "tokenizer_config.json").write_text("{")


@case(rf"its tokenizer has no end-of-sequence token: {AGAIN}, whole, with tokenizer_config\.json")
def no_end_of_sequence(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@case(r"its tokenizer gives eos token the number 400, but the model has 400 embeddings only: take tokenizer and weights of one")
def an_end_of_sequence_that_the_vocabulary_lacks(folder):
    edit(folder / "tokenizer_config.json", eos_token="<|end|>")


@case(rf"its tokenizer writes the prompts of several labels alike, as if no word was known: {AGAIN}")
def a_tokenizer_without_words(folder):
    model = {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "unk_token": "<unk>"}
    edit(folder / "tokenizer.json", model=model, added_tokens=[], post_processor=None, pre_tokenizer={"type": "Whitespace"})


@case(rf"/model\.gguf is no whole GGUF file \(it does not begin with GGUF\): {AGAIN}")
def gguf_that_is_something_else(folder):
    return raw_gguf(folder, b"NOPE" * 20)


@case(r"/model\.gguf is no GGUF file, with 4 bytes")
def gguf_of_four_bytes(folder):
    return raw_gguf(folder, b"GGUF")


@case(r"/model\.gguf is no whole GGUF file \(it counts 4,611,686,018,427,387,904 tensors and")
def gguf_of_countless_tensors(folder):
    return raw_gguf(folder, b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 1 << 62) + bytes(64))


@case(r"/model\.gguf is no whole GGUF file \(at byte 68 a list of 1,125,899,906,842,624 values is longer than it can be\)")
def gguf_with_a_list_beyond_its_end(folder):
    values = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IIQ", 9, 0, 1 << 50)
    return raw_gguf(folder, b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + values)


@case(r"/model\.gguf is no whole GGUF file \(at byte 32 a text of 1,152,921,504,606,846,976 bytes goes beyond its end\)")
def gguf_with_a_text_beyond_its_end(folder):
    return raw_gguf(folder, b"GGUF" + struct.pack("<IQQQ", 3, 1, 1, 1 << 60) + bytes(64))


@case(r"/model\.gguf is no whole GGUF file \(blk\.0\.\S+ would end at byte [\d,]+ of [\d,]+\)")
def gguf_cut_short(folder):
    write_gguf(folder / "model.gguf", None)
    os.truncate(folder / "model.gguf", (folder / "model.gguf").stat().st_size - 1_000)
    return folder / "model.gguf"


@case(r"/model\.gguf is no whole GGUF file")
def gguf_cut_short_in_its_header(folder):
    write_gguf(folder / "model.gguf", None)
    os.truncate(folder / "model.gguf", 3_000)
    return folder / "model.gguf"


@case(r"/model\.gguf has block_count=10000000, where a whole number from 1 to 12 is possible")
def gguf_of_ten_million_layers(folder):
    key = b"llama.block_count" + struct.pack("<I", 4)
    return edited_gguf(folder, key + struct.pack("<I", 1), key + struct.pack("<I", 10**7))


@case(r"/model\.gguf has NaN or infinite values in lm_head\.weight")
def gguf_with_nan(folder):
    write_gguf(folder / "model.gguf", None)
    content = (folder / "model.gguf").read_bytes()
    import gguf

    place = next(t.data_offset for t in gguf.GGUFReader(folder / "model.gguf").tensors if t.name == "output.weight")
    return raw_gguf(folder, content[:place] + struct.pack("<f", float("nan")) + content[place + 4 :])


@case(r"/config\.json is not JSON")
def random_weights_for_a_broken_config(folder):
    (folder / "config.json").write_text("{")


@case(r"/config\.json has num_hidden_layers=10000000, where a whole number from 1 to 10,000 is possible")
def random_weights_for_ten_million_layers(folder):
    edit(folder / "config.json", num_hidden_layers=10**7)


@case(r"transformers cannot read its tokenizer")
def random_weights_for_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def whole(folder):
    return folder


def sharded(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "shards", max_shard_size="50KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    for path in folder.glob("tokenizer*"):
        shutil.copy(path, folder / "shards")
    return folder / "shards"


def known_model_with_code(folder):
    hostile_code(folder)


def of_links_in_the_hubs_cache(folder):
    snapshot = folder / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return snapshot


def in_gguf(folder):
    (folder / "alone").mkdir()
    write_gguf(folder / "alone" / "model.gguf", None)
    return folder / "alone" / "model.gguf"


def in_gguf_beside_another_model(folder):
    write_gguf(folder / "model.gguf", None)
    return folder / "model.gguf"


def with_an_empty_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "nothing": torch.zeros(0)}, folder / "model.safetensors", {"format": "pt"})


GOOD = (
    whole,
    sharded,
    known_model_with_code,
    of_links_in_the_hubs_cache,
    in_gguf,
    in_gguf_beside_another_model,
    with_an_empty_tensor,
)


@pytest.fixture(scope="module")
def answers(base_model, tmp_path_factory):
    """What came of preparing each: the error's words, the metrics, or a traceback."""
    folder = tmp_path_factory.mktemp("checkpoints")
    lines = []

    def add(damage: Callable[[Path], object], name: str, **options: object) -> None:
        shutil.copytree(f"{base_model}/model", folder / name / "model")
        lines.append(json.dumps([name, str(damage(folder / name / "model") or folder / name / "model"), options]))

    for name, (damage, _) in CASES.items():
        add(damage, name, **({"random": True} if name.startswith("random") else {}))
    for damage in GOOD:
        add(damage, damage.__name__)
    add(whole, "nf4", quantization="nf4")
    add(whole, "random", random=True)
    (folder / "lines").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "lines"), str(folder / "out")],
        cwd=ROOT, input="y\n" * 100, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    found = dict(json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER "))
    assert len(found) == len(lines), done.stderr[-2000:]
    assert not list(folder.rglob("RAN"))
    assert "y/N" not in done.stdout + done.stderr
    return found


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(answers, name):
    assert answers[name].keys() == {"error"}, answers[name]
    words = answers[name]["error"]
    assert "\n" not in words and len(words) < 1_000
    assert f"/{name}/model" in words
    with pytest.raises(UserError, match=CASES[name][1]):
        raise UserError(words)


@pytest.mark.parametrize("name", [*(damage.__name__ for damage in GOOD), "nf4", "random"])
def test_a_good_one_is_taken(answers, name):
    assert answers[name].keys() == {"metrics"}, answers[name]
    assert answers[name]["metrics"]["num_parameters"] > 0


def test_a_gguf_file_has_its_own_tokenizer_whatever_lies_beside_it(base_model, tmp_path):
    shutil.copytree(f"{base_model}/model", tmp_path / "model")
    config = pretrained_model_config(str(in_gguf_beside_another_model(tmp_path / "model")), dtype="float32")
    prepare_base_model(config, str(tmp_path / "base"))
    # The pieces that `write_gguf` names; the model beside it has 400.
    assert len(load_tokenizer(str(tmp_path / "base"))) == 3 + 256 + 2


def test_a_link_is_refused_before_what_it_leads_to_is_read(base_model, tmp_path):
    shutil.copytree(f"{base_model}/model", tmp_path / "model")
    (tmp_path / "model" / "vocab.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a link out of its folder, to /dev/zero"):
        pretrained_model_config(f"{tmp_path}/model")
