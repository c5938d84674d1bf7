"""A vLLM engine on a thread of its own, and what keeps its CPU core from setting the pace.

In every decoding step vLLM handles each sequence of the batch in Python, while the GPU is at the step before. With a thousand
sequences that takes longer than the GPU's step. Here sequences that just go on are scheduled together, decoding each token's
text and looking after its place in the cache are done only where they can matter, and what is alike in requests is checked once
for all of them. The tokens are the same.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import logging
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import ModuleType
from typing import Any

from pipelines.imports import lasting_imports
from pipelines.workers.watchdog import beat, wait_for

# A batch that is filled at once would end at once where texts are equally long, and the GPU would wait while the next one is
# prepared.
ADDED_A_STEP = 32

# Seconds, a tenth of Python's own: how long the engine waits at most for another thread that computes, which it does
# whenever it has waited for the GPU.
SWITCH_INTERVAL_S = 5e-4

# The vLLM versions whose scheduling was read, and the sha256 of the source of the modules that `Stride` goes by.
READ = {
    "0.26.0": "b84d769ccb513ccbd55fa76964b9f47a99236e1bb5229e309a3dba5ee0dadc00",
    "0.32.0": "c005ee1f906b516bb72f177b7459c7ff22a8495f42eca9352b7ba952b6f6b5ea",
}

# Their cache manager, and the sha256 of the source of the two methods that are replaced there.
REPLACED = {
    "0.26.0": "cb6066630a3121d1546ef7eab3045cbf44f854fe9e260efc7ad53aebf411723b",
    "0.32.0": "1c56ac14dc6cbad397857e8b9acd201b16dbe284fc469e6bf3d0c6d8df89d0f5",
}

logger = logging.getLogger(__name__)


def import_vllm() -> None:
    """Import what an engine is built with, a good part of its start."""
    with lasting_imports():
        from vllm import LLM, SamplingParams  # noqa: F401


class Engine:
    """A vLLM engine on a thread of its own, where it is also built: CUDA's device and OpenMP's threads belong to a thread.

    `complete` may be called from many threads; their rows share the engine's batch, first come first served. A text ends with
    `stop`, which it keeps, or as its parameters say; `at_end` is put after one that the model itself ends. `options` are those
    of `vllm.LLM`; `prompts` are read before the engine is ready, so that its cache has their beginnings; `max_queued` requests
    are in the engine at a time, more than its batch holds.

    With `weights` the engine starts with random ones of the model's shape, and then asks it for the folder of those to read,
    which may take as long as it likes: all else is up by then.
    """

    def __init__(
        self,
        options: dict[str, Any],
        *,
        stop: str,
        prompts: Sequence[list[int]],
        max_queued: int,
        at_end: str = "",
        weights: Callable[[], str] | None = None,
    ) -> None:
        self._stop = stop
        self._at_end = at_end
        self._prompts = prompts
        self._max_queued = max_queued
        self._weights = weights
        self._submitted: queue.SimpleQueue[_Submission] = queue.SimpleQueue()
        started: Future[None] = Future()
        threading.Thread(target=self._run, args=(options, started), daemon=True, name="vllm-engine").start()
        wait_for(started, "a vLLM engine, while it started,")

    def complete(self, prompt: list[int], params: Any, seeds: Sequence[int]) -> tuple[list[str], int]:
        """One completion of `prompt` for each of `seeds`, in order, and the number of tokens they have in all.

        `params` are `vllm.SamplingParams` without stop strings; how they return their output is set here. Raises StalledError
        if the engine takes no step for too long.
        """
        submission = _Submission(prompt, params, seeds, self._at_end)
        self._submitted.put(submission)
        return wait_for(submission.done, "a vLLM engine")

    def text(self, prompt: list[int]) -> str:
        """A prompt as text, its special tokens among it."""
        text: str = self.llm.get_tokenizer().decode(prompt)
        return text

    def _run(self, options: dict[str, Any], started: Future[None]) -> None:
        pending: dict[str, tuple[_Submission, int]] = {}
        waiting: deque[tuple[_Submission, int]] = deque()
        try:
            import_vllm()
            from vllm import LLM, SamplingParams

            allocate_by_the_block()
            inspect_models_here()
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            placeholder = {"load_format": "dummy"} if self._weights else {}
            self.llm = llm = LLM(**options, **placeholder)
            decoder = Decoder(llm.get_tokenizer(), self._stop)
            prompts = [{"prompt_token_ids": prompt} for prompt in self._prompts]

            def read_prompts() -> None:
                llm.generate(prompts, SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)

            read_prompts()
            if self._weights is not None:
                read_weights(llm, self._weights())
                read_prompts()
            step_together(llm.llm_engine, decoder.may_end)
            started.set_result(None)
            self._serve(llm.llm_engine, decoder, pending, waiting)
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            for submission, _ in (*pending.values(), *waiting):
                submission.fail(error)
            while True:
                self._submitted.get().fail(error)

    def _serve(
        self,
        engine: Any,
        decoder: Decoder,
        pending: dict[str, tuple[_Submission, int]],
        waiting: deque[tuple[_Submission, int]],
    ) -> None:
        num_added = 0
        while True:
            while not self._submitted.empty() or not (pending or waiting):
                submission = self._submitted.get()
                waiting.extend((submission, row) for row in range(len(submission.seeds)))
            for _ in range(min(ADDED_A_STEP, self._max_queued - len(pending), len(waiting))):
                submission, row = waiting.popleft()
                name = str(num_added)
                num_added += 1
                pending[name] = (submission, row)
                # As vLLM's `add_request` does it, but for what it would check and fill in for each request anew.
                request = submission.request(engine, name, row)
                engine.output_processor.add_request(request, None)
                engine.output_processor.request_states[name].detokenizer = Text(decoder, submission.prompt)
                engine.engine_core.add_request(request)
            outputs = engine.step()
            beat()
            for output in outputs:
                if output.finished:
                    submission, row = pending.pop(output.request_id)
                    submission.finish(row, output.outputs[0])


def read_weights(llm: Any, folder: str) -> None:
    """Have vLLM's `llm` go on with the weights in `folder`, of the same shape, in the place of its own.

    Nothing that it has read before counts any more: the cache of prompts is emptied.
    """
    llm.collective_rpc("update_config", args=({"load_config": {"load_format": "auto"}},))
    llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    if not llm.reset_prefix_cache():
        raise RuntimeError("vLLM kept what it had read with its placeholder weights")


class Decoder:
    """Text of token ids, and the tokens that can complete the text `stop`."""

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self.stop = stop
        self._tokenizer = tokenizer.backend_tokenizer
        self._prompts: dict[tuple[int, ...], int] = {}
        singly = self._tokenizer.decode_batch([[number] for number in range(self._tokenizer.get_vocab_size())])
        # A token of a few bytes of a character is decoded to the replacement character.
        self.may_end = frozenset(number for number, text in enumerate(singly) if stop[-1] in text or "\ufffd" in text)

    def text(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text that `token_ids` add to that of `prompt`; a first token has its space only after something else."""
        key = tuple(prompt)
        if key not in self._prompts:
            self._prompts[key] = len(self._tokenizer.decode(key))
        whole: str = self._tokenizer.decode([*prompt, *token_ids])
        return whole[self._prompts[key] :]


class Text:
    """A request's text, in place of vLLM's detokenizer: decoded at the end, and when a token may complete the stop string."""

    __slots__ = ("_decoder", "_ended", "_prompt", "output_token_ids")

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder, self._prompt = decoder, prompt
        self.output_token_ids: list[int] = []
        self._ended: str | None = None

    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        """Take new tokens and return the stop string if the text ends with it now."""
        self.output_token_ids.extend(new_token_ids)
        decoder = self._decoder
        if decoder.may_end.isdisjoint(new_token_ids):
            return None
        before, stop, _ = decoder.text(self._prompt, self.output_token_ids).partition(decoder.stop)
        if not stop:
            return None
        self._ended = before + stop
        return stop

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        """The whole text; vLLM asks for it when the request is over."""
        return self._decoder.text(self._prompt, self.output_token_ids) if self._ended is None else self._ended


def inspect_models_here() -> None:
    """Let vLLM look in this process at what a model's class can do.

    It imports all of itself anew in another one for that, which takes as long as the rest of a small engine's start, so that
    this one does not begin to use the GPU before it starts others. Here it starts none.
    """
    from vllm import envs
    from vllm.model_executor.models import registry

    if not envs.VLLM_ENABLE_V1_MULTIPROCESSING and hasattr(registry, "_run_in_subprocess"):
        registry._run_in_subprocess = lambda function: function()


@functools.cache
def allocate_by_the_block() -> None:
    """Let vLLM's schedulers in this process look after a sequence's cache blocks only where one ends.

    They do so for each token, and find that the last block has room, and is not full yet, for all but one of a block's tokens.
    Caches of several kinds of layers are left to them. So is everything, with one line in the log, in a vLLM whose methods are
    none of those that were read. Done once, however often it is called.
    """
    import vllm
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.request import RequestStatus

    allocate, cache, running = KVCacheManager.allocate_slots, KVCacheManager.cache_blocks, RequestStatus.RUNNING
    if _source_hash(allocate, cache) not in REPLACED.values():
        logger.warning(
            "vLLM %s looks after cache blocks token by token: its KVCacheManager differs from that of %s, which ours replaces",
            vllm.__version__,
            ", ".join(REPLACED),
        )
        return

    @functools.wraps(allocate)
    def allocate_slots(
        self: Any, request: Any, num_new_tokens: int, *args: Any, num_lookahead_tokens: int = 0, **rest: Any
    ) -> Any:
        if num_new_tokens == 1 and not num_lookahead_tokens and request.status == running:
            groups = self.kv_cache_config.kv_cache_groups
            if len(groups) == 1 and request.num_computed_tokens % groups[0].kv_cache_spec.block_size:
                return self.empty_kv_cache_blocks
        return allocate(self, request, num_new_tokens, *args, num_lookahead_tokens=num_lookahead_tokens, **rest)

    @functools.wraps(cache)
    def cache_blocks(self: Any, request: Any, num_computed_tokens: int) -> None:
        groups = self.kv_cache_config.kv_cache_groups
        if len(groups) > 1 or num_computed_tokens % groups[0].kv_cache_spec.block_size == 0:
            cache(self, request, num_computed_tokens)

    KVCacheManager.allocate_slots, KVCacheManager.cache_blocks = allocate_slots, cache_blocks


def _source_hash(*read: Callable[..., Any] | ModuleType) -> str | None:
    try:
        source = "".join(map(inspect.getsource, read))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def step_together(engine: Any, may_end: frozenset[int]) -> None:
    """Have vLLM's `engine`, which has no requests, step by `Stride` where that can be. Where not, the log says why."""
    core = getattr(engine.engine_core, "engine_core", None)
    if core is None:
        return  # It is in a process of its own.
    if objection := Stride.objection(core.scheduler):
        logger.warning("vLLM schedules each sequence by itself: %s", objection)
    else:
        Stride(core.scheduler, may_end)


class Stride:
    """The steps of vLLM's `scheduler`, in which sequences that just go on by one token are handled together.

    vLLM handles each in some hundred lines of Python, for prompts read in parts, drafts, images and transfers as well. Here a
    step first sets apart the sequences that need none of it: their last block has room and neither their length nor, when it
    has come, their token ends them. The others, and waiting ones, are left to the scheduler's own methods. A token after
    which nothing can end, which is one outside `may_end`, is reported with the next that is.

    To be made when the scheduler has no requests, and has no `objection`.
    """

    def __init__(self, scheduler: Any, may_end: frozenset[int]) -> None:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.request import RequestStatus

        self._scheduler = scheduler
        self._running = RequestStatus.RUNNING
        self._may_end = may_end
        self._block_size = scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        # Tokens of a step that the scheduler counts before they are there.
        self._num_ahead = int(isinstance(scheduler, AsyncScheduler))
        limits = ("max_num_scheduled_tokens", "max_num_running_reqs", "max_num_active_reqs")
        self._limits = [name for name in limits if hasattr(scheduler, name)]
        self._watched: dict[tuple[Any, ...], frozenset[int]] = {}
        self._add, self._schedule, self._update = scheduler.add_request, scheduler.schedule, scheduler.update_from_output
        scheduler.add_request, scheduler.schedule = self.add_request, self.schedule
        scheduler.update_from_output = self.update_from_output

    @staticmethod
    def objection(scheduler: Any) -> str | None:
        """Why steps of this scheduler have to be its own, if so."""
        import vllm
        from vllm.v1 import request
        from vllm.v1.core import kv_cache_manager
        from vllm.v1.core.sched import async_scheduler, utils
        from vllm.v1.core.sched import scheduler as synchronous

        if _source_hash(synchronous, async_scheduler, utils, kv_cache_manager, request) not in READ.values():
            return f"its version {vllm.__version__} schedules otherwise than {' and '.join(READ)}, which were read"
        if type(scheduler) not in (synchronous.Scheduler, async_scheduler.AsyncScheduler):
            return f"its scheduler is a {type(scheduler).__name__}"
        config = scheduler.vllm_config
        parallel = config.parallel_config
        special = {
            "more than one kind of cache": len(scheduler.kv_cache_config.kv_cache_groups) != 1,
            "a recurrent state": scheduler.has_mamba_layers,
            "drafts": config.speculative_config is not None,
            "diffusion": scheduler.num_sampled_tokens_per_step != 1,
            "an encoder": scheduler.is_encoder_decoder,
            "adapters": config.lora_config is not None,
            "transfers": config.kv_transfer_config is not None or config.ec_transfer_config is not None,
            # A switch in one version, in the other what brings them.
            "experts' choices": any(
                getattr(scheduler, name, None) for name in ("enable_return_routed_experts", "aux_output_connector")
            ),
            "several parts of a model": parallel.pipeline_parallel_size > 1 or parallel.decode_context_parallel_size > 1,
            "what tokens were drawn from": getattr(scheduler, "return_sampling_mask", False),
            "priorities": scheduler.scheduler_config.policy != "fcfs",
            "parts of prompts that go by the number of sequences": scheduler.scheduler_config.long_prefill_token_threshold > 0
            and getattr(scheduler, "adaptive_long_prefill_threshold", False),
            "statistics": scheduler.log_stats,
            "requests": bool(scheduler.requests),
        }
        return next((f"it has to look after {what}" for what, is_there in special.items() if is_there), None)

    def add_request(self, request: Any) -> None:
        """Add vLLM's `request`, with what the steps here go by.

        `most` is the number of tokens, or zero where vLLM has to look at each of them; `watched` are those that it has to see.
        """
        params = request.sampling_params
        asks_for_more = params is None or (
            params.num_logprobs is not None
            or params.prompt_logprobs is not None
            or params.structured_outputs is not None
            or params.repetition_detection is not None
            or params.min_tokens
            or request.mm_features
            or request.prompt_token_ids is None
            or request.resumable
        )
        longest = self._scheduler.max_model_len - request.num_prompt_tokens
        request.most = 0 if asks_for_more else min(request.max_tokens, longest)
        request.num_reported = 0
        if not asks_for_more:
            ends = params.eos_token_id, *(params.stop_token_ids or ())
            if ends not in self._watched:
                self._watched[ends] = self._may_end | set(ends)
            request.watched = self._watched[ends]
        self._add(request)

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """vLLM's `SchedulerOutput` for the next step."""
        scheduler, block_size = self._scheduler, self._block_size
        running = scheduler.running
        # Two are always left to vLLM: it asks one for what all have in common, and reads a prompt at once that is alone.
        others, going_on = running[:2], []
        names, num_computed, num_output = [], [], []
        known = None if scheduler.use_v2_model_runner else scheduler.prev_step_scheduled_req_ids
        for request in running[2:]:
            computed = request.num_computed_tokens
            # The tokens there are, and those that steps under way will add.
            output = len(request._output_token_ids) + request.num_output_placeholders
            if (
                computed % block_size
                and output < request.most
                and request.num_prompt_tokens + output == computed + 1
                and not request.is_prefill_chunk
                and (known is None or request.request_id in known)
            ):
                going_on.append(request)
                names.append(request.request_id)
                num_computed.append(computed)
                num_output.append(output)
            else:
                others.append(request)
        if (
            throttle_prefills
            or len(running) > scheduler.max_num_scheduled_tokens
            or scheduler.pause_state
            # With so many blocks none is put back for another's sake.
            or sum(1 + max(0, request.num_tokens - request.num_computed_tokens) // block_size for request in others)
            > scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        ):
            return self._schedule(throttle_prefills)

        before = {name: getattr(scheduler, name) for name in self._limits}
        num_others = len(others)
        scheduler.running = others
        try:
            for name in self._limits:
                setattr(scheduler, name, before[name] - len(going_on))
            output = self._schedule()
        finally:
            for name in self._limits:
                setattr(scheduler, name, before[name])
            scheduler.running = [*running, *scheduler.running[num_others:]]

        for request, computed in zip(going_on, num_computed, strict=True):
            request.num_computed_tokens = computed + 1
            request.num_in_flight_tokens += 1
            request.num_output_placeholders += self._num_ahead
        # In vLLM's order, which is that of the batch's rows.
        theirs = output.num_scheduled_tokens
        both = dict.fromkeys(names, 1) | theirs
        in_order = {name: both[name] for request in running if (name := request.request_id) in both}
        output.num_scheduled_tokens = in_order | theirs
        output.total_num_scheduled_tokens += len(names)
        if known is not None:
            known.update(names)
        cached = output.scheduled_cached_reqs
        cached.req_ids = names + cached.req_ids
        cached.new_block_ids = [None] * len(names) + cached.new_block_ids
        cached.num_computed_tokens = num_computed + cached.num_computed_tokens
        cached.num_output_tokens = num_output + cached.num_output_tokens
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take what a step has brought. Returns vLLM's outputs of the requests whose tokens are reported."""
        scheduler, block_size, num_ahead = self._scheduler, self._block_size, self._num_ahead
        requests, running = scheduler.requests, self._running
        sampled, rows = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        others = {}
        for name, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request = requests.get(name)
            if request is not None and request.most and request.status == running and sampled:
                tokens, output = sampled[rows[name]], request._output_token_ids
                if (
                    len(tokens) == num_tokens == 1
                    and len(output) + 1 < request.most
                    and tokens[0] not in request.watched
                    # The first token is reported with what its prompt took; who was put back may have others under way.
                    and request.prefill_stats is None
                    and not request.num_preemptions
                ):
                    output.append(tokens[0])
                    request._all_token_ids.append(tokens[0])
                    if len(request._all_token_ids) % block_size == 0:
                        request.update_block_hashes()
                    request.num_in_flight_tokens -= 1
                    request.num_output_placeholders -= num_ahead
                    computed = request.num_computed_tokens - request.num_output_placeholders
                    if computed % block_size == 0:
                        scheduler.kv_cache_manager.cache_blocks(request, computed)
                    continue
            others[name] = num_tokens
        seen = {name: request for name in others if (request := requests.get(name)) is not None and request.most}
        step = copy.copy(scheduler_output)
        step.num_scheduled_tokens = others
        outputs = self._update(step, model_runner_output)
        for client in outputs.values():
            for reported in client.outputs:
                # Of one that vLLM looks after, or ends outside its steps, all are there.
                if (request := seen.get(reported.request_id)) is not None:
                    reported.new_token_ids = request._output_token_ids[request.num_reported :]
                    request.num_reported = len(request._output_token_ids)
        return outputs


class _Submission:
    """The rows of one call to `Engine.complete`, and the future that holds its result."""

    def __init__(self, prompt: list[int], params: Any, seeds: Sequence[int], at_end: str) -> None:
        self.prompt = prompt
        self._at_end = at_end
        self.seeds = seeds
        self.done: Future[tuple[list[str], int]] = Future()
        self._params = params
        self._template: Any = None
        self._texts: dict[int, str] = {}
        self._num_tokens = 0

    def request(self, engine: Any, name: str, row: int) -> Any:
        """A row's request, as vLLM's `engine` would make it."""
        from vllm.sampling_params import RequestOutputKind

        if self._template is None:
            params = copy.copy(self._params)
            params.output_kind = RequestOutputKind.FINAL_ONLY
            params.detokenize = False
            self._template = engine.input_processor.process_inputs(
                name, {"prompt_token_ids": self.prompt}, params, supported_tasks=engine.get_supported_tasks()
            )
        request = copy.copy(self._template)
        request.request_id = request.external_req_id = name
        request.sampling_params = copy.copy(self._template.sampling_params)
        request.sampling_params.seed = self.seeds[row]
        return request

    def finish(self, row: int, completion: Any) -> None:
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a request with {completion.finish_reason!r}: {completion}")
        # Without a stop string a token ended it: the tokenizer's end of a text, or what a chat model has for it.
        is_ended = completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str)
        self._texts[row] = completion.text + (self._at_end if is_ended else "")
        self._num_tokens += len(completion.token_ids)
        if len(self._texts) == len(self.seeds):
            self.done.set_result(([self._texts[row] for row in range(len(self.seeds))], self._num_tokens))

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
