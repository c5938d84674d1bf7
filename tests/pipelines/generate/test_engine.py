"""The engine's texts are those that vLLM alone would give."""

import functools
import inspect
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.generate import engine
from pipelines.generate.config import GenerationConfig
from pipelines.generate.engine import Decoder, Stride, Text, allocate_by_the_block, inspect_models_here, step_together
from pipelines.generate.options import engine_environment
from pipelines.resources import Resources
from pipelines.tasks.prompts import END_MARKERS, generator_prompt

STOPS = (*END_MARKERS, " –", "a")


@pytest.fixture(scope="module")
def tokenizer(models: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models / "trained" / "model")


@pytest.mark.parametrize("stop", STOPS)
def test_a_text_ends_where_vllms_detokenizer_ends_it(tokenizer, stop: str) -> None:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    prompt = tokenizer(generator_prompt("neutral"))["input_ids"]
    decoder = Decoder(tokenizer, stop)
    params = SamplingParams(stop=[stop], include_stop_str_in_output=True)
    request = SimpleNamespace(request_id="0", prompt_token_ids=prompt, sampling_params=params)
    rng = random.Random(0)
    num_stopped = 0
    for _ in range(300):
        words = [
            rng.choice(("The", " judge", " –", " -- ", "é", " This is", stop, ".", " the end", "–", "a", "…")) for _ in range(9)
        ]
        ids = tokenizer("".join(words), add_special_tokens=False)["input_ids"]
        # Tokenized apart, a marker's bytes come in other tokens than the usual ones.
        ids += [one for char in stop for one in tokenizer(char, add_special_tokens=False)["input_ids"]]
        ids.append(tokenizer.eos_token_id)
        theirs, ours = FastIncrementalDetokenizer(tokenizer, request), Text(decoder, prompt)
        for token in ids:
            found = ours.update([token], token == tokenizer.eos_token_id)
            assert found == theirs.update([token], token == tokenizer.eos_token_id)
            if found:
                num_stopped += 1
                break
        assert ours.get_next_output_text(True, False) == theirs.get_next_output_text(True, False)
        assert ours.output_token_ids == theirs.output_token_ids
    assert num_stopped > 200


SCRIPT = """
import json, sys
from pipelines.imports import lasting_imports, without_modules
with lasting_imports(), without_modules("sklearn"):
    from vllm import LLM, SamplingParams
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from pipelines.generate.engine import Engine
from pipelines.generate.options import engine_options
from pipelines.generate.config import GenerationConfig
from pipelines.generate.writer import encode_prompts
from pipelines.resources import Resources

model, stop = sys.argv[1:]
prompt = next(iter(encode_prompts(model).values()))
config = GenerationConfig(max_new_tokens=64, max_num_seqs=48, dtype="float32")
options = engine_options(config, model, Resources(), [len(prompt)])
asked = 0
allocate = KVCacheCoordinator.allocate_new_blocks

def counted(*args, **kwargs):
    global asked
    asked += 1
    return allocate(*args, **kwargs)

KVCacheCoordinator.allocate_new_blocks = counted
seeds = range(160)
own = {"stop": [stop], "include_stop_str_in_output": True}
params = [SamplingParams(max_tokens=64, seed=seed, **own) for seed in seeds]
plain = LLM(**options)
outputs = plain.generate([{"prompt_token_ids": prompt}] * len(seeds), params, use_tqdm=False)
theirs = [one.outputs[0].text for one in outputs], sum(len(one.outputs[0].token_ids) for one in outputs)
asked_by_vllm, asked = asked, 0
engine = Engine(options, stop=stop, prompts=[prompt], max_queued=96)
ours = engine.complete(prompt, SamplingParams(max_tokens=64), seeds)
scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
by = type(scheduler.schedule.__self__).__name__
print("RESULT " + json.dumps({"theirs": theirs, "ours": ours, "asked": [asked_by_vllm, asked], "by": by}))
"""


@pytest.mark.parametrize("stop", [" –"])
def test_an_engine_writes_what_vllm_writes(models: Path, stop: str) -> None:
    environment = os.environ | engine_environment(GenerationConfig(), Resources())
    command = [sys.executable, "-c", SCRIPT, str(models / "trained" / "model"), stop]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2_000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    assert found["ours"] == found["theirs"]
    assert found["by"] == "Stride"
    texts, _ = found["ours"]
    num_ended = sum(text.endswith(stop) for text in texts)
    assert 20 < num_ended <= len(texts)
    by_vllm, by_us = found["asked"]
    assert by_us < by_vllm / 4


MAY_END = frozenset(range(100, 130))
ENDS_A_TEXT = 100
ENDS_BY_ITSELF = 2


# Models that vLLM's second runner does not take run in steps that are asynchronous, too.
@pytest.mark.parametrize(
    ("asynchronous", "second_runner", "most_of_a_prompt"),
    [(True, True, 0), (True, True, 1), (True, False, 0), (True, False, 1), (False, False, 0)],
)
def test_steps_are_those_of_vllms_scheduler(
    models: Path, asynchronous: bool, second_runner: bool, most_of_a_prompt: int
) -> None:
    allocate_by_the_block()
    model = str(models / "trained" / "model")
    found = []
    for by_us in (False, True):
        scheduler = new_scheduler(model, asynchronous=asynchronous, long_prefill_token_threshold=most_of_a_prompt)
        scheduler.use_v2_model_runner = second_runner
        found.append(steps_of(scheduler, by_us=by_us))
    (theirs, texts, vllm_reports), (ours, our_texts, our_reports) = found
    assert our_texts == texts
    assert ours == theirs
    assert any(preempted for *_, preempted, _ in theirs)
    # Tokens of one with more to look at come one by one.
    for name in ("3", "4"):
        assert our_reports[name] == vllm_reports[name] == len(texts[name])
    assert sum(our_reports.values()) < sum(vllm_reports.values()) / 4


def test_a_scheduler_with_more_to_look_after_is_left_alone(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = new_scheduler(str(models / "trained" / "model"), asynchronous=True)
    assert Stride.objection(scheduler) is None
    scheduler.requests["1"] = new_request("1", [1])
    assert Stride.objection(scheduler) == "it has to look after requests"
    scheduler.requests.clear()
    scheduler.return_sampling_mask = True
    assert Stride.objection(scheduler) == "it has to look after what tokens were drawn from"
    scheduler.vllm_config.lora_config = SimpleNamespace()
    assert Stride.objection(scheduler) == "it has to look after adapters"
    monkeypatch.setattr(engine, "READ", {"0.25.0": "another"})
    assert "schedules otherwise than 0.25.0, which were read" in str(Stride.objection(scheduler))
    caplog.clear()
    step_together(SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))), MAY_END)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["vLLM schedules each sequence by itself"]
    assert scheduler.schedule.__self__ is scheduler


def test_a_request_that_vllm_ends_outside_its_steps_is_reported(models: Path) -> None:
    from vllm.v1.engine import FinishReason
    from vllm.v1.outputs import ModelRunnerOutput

    scheduler = new_scheduler(str(models / "trained" / "model"), asynchronous=False)
    Stride(scheduler, MAY_END)
    for name in ("0", "1"):
        scheduler.add_request(new_request(name, [7] * 20, block_size=16))
    step = scheduler.schedule()
    scheduler.add_request(new_request("2", [7] * 20, block_size=16))
    # As where a grammar could not be compiled.
    scheduler.grammar_compile_error_reqs.add("2")
    brought = ModelRunnerOutput(["0", "1"], {"0": 0, "1": 1}, [[200], [201]], prompt_logprobs_dict={})
    outputs = scheduler.update_from_output(step, brought)[0].outputs
    assert {output.request_id: output.finish_reason for output in outputs} == {"0": None, "1": None, "2": FinishReason.ERROR}


def steps_of(scheduler: Any, *, by_us: bool) -> tuple[list[Any], dict[str, list[int]], dict[str, int]]:
    """What a scheduler does for the same requests and tokens: its steps, the texts, and the number of reports of each."""
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import RequestStatus

    if by_us:
        Stride(scheduler, MAY_END)
    texts: dict[str, list[int]] = {str(number): [] for number in range(60)}
    num_reports = dict.fromkeys(texts, 0)
    tables: dict[str, list[int]] = {}
    steps: list[Any] = []
    under_way: list[Any] = []
    waiting, unfinished = list(texts), set(texts)
    while unfinished:
        assert len(steps) < 3_000, "they do not come to an end"
        for name in waiting[:4]:
            more: dict[str, Any] = {"3": {"logprobs": 0}, "4": {"logprob_token_ids": [5]}}.get(name, {})
            scheduler.add_request(new_request(name, [7] * (20 + int(name) % 3), block_size=16, **more))
        del waiting[:4]
        step = scheduler.schedule()
        sampled = []
        for name in step.num_scheduled_tokens:
            request = scheduler.requests[name]
            sampled.append([] if request.is_prefill_chunk else [token(name, request.num_computed_tokens)])
        cached = step.scheduled_cached_reqs
        given = zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, cached.new_block_ids, strict=True)
        new = [(one.req_id, one.num_computed_tokens, one.block_ids) for one in step.scheduled_new_reqs]
        tables |= {one.req_id: list(one.block_ids[0]) for one in step.scheduled_new_reqs}
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if blocks:
                tables[name] = ([] if name in cached.resumed_req_ids else tables[name]) + blocks[0]
        assert all(tables[name] == scheduler.kv_cache_manager.get_block_ids(name)[0] for name in step.num_scheduled_tokens)
        scheduled = list(step.num_scheduled_tokens.items()), step.total_num_scheduled_tokens, sorted(cached.all_token_ids)
        steps.append((scheduled, sorted(given), new, step.finished_req_ids, step.preempted_req_ids, cached.resumed_req_ids))
        rows = {name: row for row, name in enumerate(step.num_scheduled_tokens)}
        brought = ModelRunnerOutput(list(rows), rows, sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[])
        under_way.append((step, brought))
        if len(under_way) <= type(scheduler).__name__.startswith("Async"):
            continue
        outputs = scheduler.update_from_output(*under_way.pop(0)).get(0)
        for output in outputs.outputs if outputs else ():
            name = output.request_id
            texts[name] += output.new_token_ids
            num_reports[name] += 1
            if output.new_token_ids[-1:] == [ENDS_A_TEXT] and not output.finished:
                scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)
                unfinished.discard(name)
            elif output.finished:
                unfinished.discard(name)
    return steps, texts, num_reports


def token(name: str, position: int) -> int:
    drawn = random.Random(f"{name} {position}")
    if drawn.random() < 0.02:
        return drawn.choice([ENDS_BY_ITSELF, *MAY_END])
    return drawn.randrange(200, 300)


def new_scheduler(model: str, *, asynchronous: bool, **options: Any) -> Any:
    """vLLM's own, for a dozen sequences and blocks that do not hold as many."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        inspect_models_here()
    limits = {"max_model_len": 90, "max_num_seqs": 12, "max_num_batched_tokens": 90}
    config = EngineArgs(model=model, block_size=16, **limits, **options).create_engine_config()
    config.cache_config.num_gpu_blocks = num_blocks = 40
    layers = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
    blocks = KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layers)])
    scheduler = (AsyncScheduler if asynchronous else Scheduler)(
        config, blocks, StructuredOutputManager(config), block_size=16, hash_block_size=16
    )
    # As on a GPU, where steps are asynchronous.
    scheduler.use_v2_model_runner = asynchronous
    return scheduler


def test_blocks_are_given_and_cached_as_vllm_does_it() -> None:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    allocate_by_the_block()
    found: dict[str, Any] = {}
    for which in ("ours", "vLLM's"):
        asked = 0
        allocate, cache = KVCacheManager.allocate_slots, KVCacheManager.cache_blocks
        if which == "vLLM's":
            allocate, cache = allocate.__wrapped__, cache.__wrapped__  # type: ignore[attr-defined]
        manager, requests = kv_cache_manager(), []
        cache_blocks = manager.coordinator.cache_blocks

        def counted(*args: Any, cache_blocks: Any = cache_blocks) -> None:
            nonlocal asked
            asked += 1
            cache_blocks(*args)

        manager.coordinator.cache_blocks = counted
        for number, prompt in enumerate([[7] * 9, [7] * 9, [5] * 12, list(range(30))]):
            requests.append(request := new_request(str(number), prompt))
            computed, num_computed = manager.get_computed_blocks(request)[:2]
            assert allocate(manager, request, len(prompt) - num_computed, num_computed, computed) is not None
            request.status, request.num_computed_tokens = request.status.RUNNING, len(prompt)
        tables = []
        for token in range(2, 60):
            for request in requests:
                # As vLLM's asynchronous scheduler does it.
                assert allocate(manager, request, 1, num_lookahead_tokens=0) is not None
                request.num_computed_tokens += 1
                request.append_output_token_ids([token * int(request.request_id)])
                cache(manager, request, request.num_computed_tokens)
            tables.append([manager.get_block_ids(request.request_id) for request in requests])
        again = new_request("again", list(requests[1].all_token_ids))
        found[which] = tables, manager.block_pool.get_num_free_blocks(), manager.get_computed_blocks(again)[1], asked
    *ours, asked_by_us = found["ours"]
    *theirs, asked_by_vllm = found["vLLM's"]
    assert ours == theirs
    assert ours[-1] == 64
    assert asked_by_us < asked_by_vllm / 2


def test_a_vllm_that_was_not_read_keeps_its_own_methods(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    theirs = {name: inspect.unwrap(getattr(KVCacheManager, name)) for name in ("allocate_slots", "cache_blocks")}

    def cache_blocks(self: Any, request: Any, num_computed_tokens: int) -> None:
        self.coordinator.cache_blocks(request, num_computed_tokens)

    for changed, num_lines in (({}, 0), ({"cache_blocks": cache_blocks}, 1)):
        caplog.clear()
        before = {**theirs, **changed}
        for name, method in before.items():
            monkeypatch.setattr(KVCacheManager, name, method)
        allocate_by_the_block.__wrapped__()
        assert len(caplog.records) == num_lines
        for name, method in before.items():
            assert (getattr(KVCacheManager, name) is method) == bool(changed)
    assert "vLLM 0." in caplog.text and "0.26.0" in caplog.text


def kv_cache_manager() -> Any:
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    layers = FullAttentionSpec(block_size=4, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config = KVCacheConfig(num_blocks=200, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layers)])
    return KVCacheManager(config, max_model_len=200, scheduler_block_size=4, hash_block_size=4)


def new_request(name: str, prompt: list[int], *, block_size: int = 4, **params: Any) -> Any:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    sampling = SamplingParams(max_tokens=60, **params)
    sampling.update_from_generation_config({}, eos_token_id=ENDS_BY_ITSELF)
    return Request(name, prompt, sampling, None, block_hasher=block_hasher(block_size))


@functools.cache
def block_hasher(block_size: int) -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils

    # Drawn anew, it is another in some versions, and no beginning is found again.
    if not hasattr(kv_cache_utils, "NONE_HASH"):
        kv_cache_utils.init_none_hash(sha256)
    return kv_cache_utils.get_request_block_hasher(block_size, sha256)
