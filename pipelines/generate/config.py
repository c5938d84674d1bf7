"""The config of a synthetic pool: sampling, and how engines are run. Pure: no heavy imports."""

import math
from dataclasses import dataclass

from pipelines.errors import UserError
from pipelines.field_types import check_types
from pipelines.generate.decode_attention import CHOICES
from pipelines.generate.prompting import Endpoint, Prompting
from pipelines.identity import added, runtime
from pipelines.tasks.nli import NLI
from pipelines.tasks.prompts import EN_DASH, END_MARKERS, UNAMBIGUOUS_STARTS
from pipelines.tasks.task import Task

FP8 = "fp8"
STAND_IN = "this is a stand-in"
"""The last text of a rehearsal's examples, but for those of the task's first label."""


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling from the generator. The defaults are ancestral sampling, as in the paper's scripts.

    `num_per_label`: parsed examples wanted of each label, one number or one a label in the task's order. The pool holds whole
    shards, so at least this many; or, with `exact`, this many and the last shard's surplus is kept beside it. `shard_size`
    (prompts a shard) is identity because seeds and the pool's end depend on it. `top_k=-1` and `top_p=1.0` keep the whole
    distribution. A text ends at the end marker, at the tokenizer's end-of-sequence token, after
    `max_new_tokens`, or at the end of the model's context. With `stop_early` it ends where the marker begins, and the rest of
    the marker is taken for granted: 8 tokens of 58 are saved, and a text that has an en dash of its own ends there.
    With `quantization` "fp8" the model's projections have 8 bits as it writes, and so has what meets them (`options.py`).
    `prompting` is for a model that is not finetuned: a text that it ends by itself, at the tokenizer's end of a text, is then
    complete without the end marker. With an `endpoint` the model is there, and is prompted. `stand_ins` makes it a rehearsal:
    the pool holds, for each text, what `stand_in` cuts from it, so that weights which write nothing that parses fill a pool.

    Runtime: `max_num_seqs` sequences in an engine's batch (0: 1,024 on a GPU, 256 on a CPU);
    `shards_in_flight` shards that an engine works on at a time (0: enough to keep its batch full);
    `enforce_eager` (None: on the CPU only); `engine_process` puts the engine's core into a process of its
    own; `attention_backend` on a GPU: `auto`, `vllm` or `triton` (see `attention_options`);
    `gpu_memory_utilization` of the worker's share of a GPU; `cpu_kv_cache_gib` of an engine on the CPU;
    `min_yield`, the parsed fraction below which generation gives up; `generator_id`, kept with each example; `examples`, the
    training data that prompts show examples of.
    """

    num_per_label: int | tuple[int, ...] = 20_000
    exact: bool = False
    shard_size: int = 1_024
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 512
    end_marker: str = EN_DASH
    dtype: str = "bfloat16"
    stand_ins: bool = False
    stop_early: bool = added(False)
    task: Task = added(NLI)
    prompting: Prompting | None = added(None)
    endpoint: Endpoint | None = added(None)
    quantization: str = added("none")
    min_yield: float = runtime(0.2)
    max_num_seqs: int = runtime(0)
    shards_in_flight: int = runtime(0)
    enforce_eager: bool | None = runtime(None)
    engine_process: bool = runtime(False)
    attention_backend: str = runtime("auto")
    gpu_memory_utilization: float = runtime(0.9)
    cpu_kv_cache_gib: int = runtime(1)
    progress_bars: bool = runtime(False)
    generator_id: str = runtime("")
    examples: str = runtime("")

    def __post_init__(self) -> None:
        check_types(self)
        numbers = (self.num_per_label,) if isinstance(self.num_per_label, int) else self.num_per_label
        # How many labels there are is the task's to say, and a study's task comes in later: `num_by_label` has the rest.
        if not numbers or min(numbers) < 1:
            raise UserError(f"num_per_label={self.num_per_label!r}: give one number above 0, or one a label")
        for name in ("shard_size", "max_new_tokens", "cpu_kv_cache_gib"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("max_num_seqs", "shards_in_flight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: give a number above 0, or 0 to have it chosen")
        for name in ("top_p", "min_yield", "gpu_memory_utilization"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: must be above 0 and at most 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature={self.temperature}: must be above 0; at 0 a label's examples would be the same")
        if self.top_k < 1 and self.top_k != -1:
            raise UserError(f"top_k={self.top_k}: give the number of tokens to choose from, or -1 for all")
        if self.end_marker not in END_MARKERS:
            raise UserError(f"end_marker={self.end_marker!r}: use one of {', '.join(map(repr, END_MARKERS))}")
        if self.stop_early and self.end_marker not in UNAMBIGUOUS_STARTS:
            raise UserError(
                f"stop_early=True with end_marker={self.end_marker!r}, which begins as texts of the data go on; leave it "
                f"out, or use {', '.join(map(repr, UNAMBIGUOUS_STARTS))}"
            )
        if self.endpoint is not None and self.prompting is None:
            raise UserError("a model behind an endpoint is prompted; give prompting=Prompting(…), too")
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(f"dtype={self.dtype!r}: use one of bfloat16, float16, float32")
        if self.quantization not in ("none", FP8):
            raise UserError(f"quantization={self.quantization!r}: use one of none, {FP8}")
        if self.quantization == FP8 and (self.endpoint is not None or self.dtype == "float32"):
            has = "an endpoint, whose model computes as its server has it" if self.endpoint is not None else "dtype='float32'"
            raise UserError(
                f"quantization={FP8!r} with {has}: it is for an engine of ours in bfloat16 or float16; leave one of them out"
            )
        if self.attention_backend not in CHOICES:
            raise UserError(f"attention_backend={self.attention_backend!r}: use one of {', '.join(CHOICES)}")

    @property
    def num_by_label(self) -> dict[str, int]:
        """Parsed examples wanted of each label, in the task's order. Raises UserError if there is not one number a label."""
        labels = self.task.labels
        if isinstance(self.num_per_label, int):
            return dict.fromkeys(labels, self.num_per_label)
        if len(self.num_per_label) != len(labels):
            raise UserError(
                f"num_per_label={self.num_per_label!r}: give one number, or {len(labels)} of them for {', '.join(labels)}, the "
                f"labels of the task {self.task.name}"
            )
        return dict(zip(labels, self.num_per_label, strict=True))

    @property
    def stop(self) -> str:
        """The text at which a generated one ends."""
        return UNAMBIGUOUS_STARTS[self.end_marker] if self.stop_early else self.end_marker

    def completed(self, text: str) -> str:
        """A generated text as it would be if it had been written to the end of the marker."""
        return text.removesuffix(self.stop) + self.end_marker if text.endswith(self.stop) else text
