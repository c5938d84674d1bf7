"""One job's way through its examples: which batch is next, what is due after it, its log and its metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from pipelines.finetune.checkpoints import Progress
from pipelines.finetune.job import Examples, Member
from pipelines.finetune.recipe import check_loss, cooldown_start, learning_rate_at, nested_ends
from pipelines.models.process import peak_gpu_memory_gib
from pipelines.packing.dealing import packed_size
from pipelines.workers.watchdog import beat


class Course:
    """Where a job stands: its next step, its log and its clock."""

    def __init__(self, member: Member) -> None:
        self.started = time.perf_counter()
        self.member, self.job, self.config = member, member.job, member.job.config
        self.examples = Examples.read(self.job)
        self.longest = max(self.examples.lengths)
        self.batches = self.examples.batches
        ends = [len(self.batches)]
        if self.job.is_on_trajectory:
            ends = nested_ends((*self.job.nested_sizes, len(self.examples.lengths)), self.config.batch_size)
        assert ends[-1] == len(self.batches)
        self.shortest = ends[0]
        self.branched_at = cooldown_start(ends[-1], self.config) if self.job.trunk else 0
        self.kept_at = set() if self.job.trunk else {cooldown_start(end, self.config) for end in ends[:-1]}
        self.next_step = self.first_step = self.committed = 0
        self.log: list[dict[str, float]] = []
        self.needs_attention = False
        self.neighbours: list[int] = []
        """How many were trained at once, at each logged step."""

    def begin(self, progress: Progress | None) -> None:
        """Start the clock at the first step, or where a checkpoint's `progress` goes on."""
        self.next_step = self.first_step = self.window_step = self.branched_at
        if progress is not None:
            self.next_step = self.first_step = progress.next_step
            self.window_step, self.log = progress.logged_step, progress.log
        self.committed = self.next_step
        self.setup_s = time.perf_counter() - self.started
        self.window_start = self.train_start = time.perf_counter()

    def progress(self, loss: float, *, num_updates: int) -> Progress:
        """What a checkpoint keeps of this; `loss` is summed since the last logged step."""
        return Progress(self.next_step, list(self.log), self.window_step, loss, num_updates)

    @property
    def fraction(self) -> float:
        """How much of its own steps is done; a branch's trunk is not among them."""
        return (self.next_step - self.branched_at) / (len(self.batches) - self.branched_at)

    @property
    def next_batch(self) -> list[int]:
        return self.batches[self.next_step]

    @property
    def num_tokens(self) -> int:
        """Tokens of the next batch."""
        examples = self.examples
        return packed_size([examples.lengths[i] for i in self.next_batch], [examples.prefixes[i] for i in self.next_batch])

    def weight(self, steps: Sequence[Sequence[int]]) -> int:
        """How many examples, or predicted tokens, the mean loss of these batches is over."""
        num_examples = sum(map(len, steps))
        return num_examples if self.job.objective == "classification" else self.examples.num_tokens(steps) - num_examples

    def num_passes(self, num_courses: int) -> float:
        """Passes of so many courses like this one: at least its own steps, more if their tokens do not fit into these."""
        steps = self.batches[self.branched_at :]
        num_tokens = self.examples.num_tokens(steps)
        return max(len(steps), num_courses * num_tokens / self.config.tokens_per_microbatch)

    def learning_rate_at(self, step: int) -> float:
        return learning_rate_at(step, len(self.batches), self.config, shortest=self.shortest)

    @property
    def head_is_frozen(self) -> bool:
        """Whether the next step leaves a classifier's head as it is."""
        return self.next_step < math.ceil(self.config.head_frozen_share * len(self.batches))

    def advance(self) -> None:
        """The next step has been computed."""
        self.next_step += 1
        beat()
        self.needs_attention = self.is_over or self.is_logged or self.is_kept or self.is_saved

    @property
    def is_over(self) -> bool:
        return self.next_step == len(self.batches)

    @property
    def is_logged(self) -> bool:
        return self.next_step % self.config.log_every == 0 or self.is_over

    @property
    def is_kept(self) -> bool:
        """Whether a branch leaves here."""
        return self.next_step in self.kept_at

    @property
    def is_saved(self) -> bool:
        """Whether a checkpoint is due."""
        every = self.config.checkpoint_every
        return bool(every) and self.next_step % every == 0 and not self.is_over

    @property
    def stopped_at(self) -> str:
        """What a notice has stopped, for people."""
        return f"a notice stopped it at step {self.next_step} of {len(self.batches)}, which is committed"

    def log_step(self, total_loss: float) -> None:
        """Log the steps since the last logged one, over which `total_loss` was summed. Raises UserError if it is no number."""
        step = self.next_step
        steps = self.batches[self.window_step : step]
        entry = {
            "step": step,
            "loss": total_loss / self.weight(steps),
            "learning_rate": self.learning_rate_at(step - 1),
            # Steps before a resumption took none of this time.
            **self._rates(self.batches[max(self.window_step, self.first_step) : step], time.perf_counter() - self.window_start),
            "fraction_done": self.fraction,
        }
        check_loss(entry["loss"], step, self.config)
        self.window_step, self.window_start = step, time.perf_counter()
        self.log.append(entry)
        self.member.report({name: value for name, value in entry.items() if name != "step"}, step)

    def _rates(self, steps: Sequence[Sequence[int]], seconds: float) -> dict[str, float]:
        return {
            "examples_per_s": sum(map(len, steps)) / seconds,
            "tokens_per_s": self.examples.num_tokens(steps) / seconds,
        }

    def end(self) -> None:
        """Stop the clock."""
        self.train_s = time.perf_counter() - self.train_start

    def metrics(self, num_parameters: int, *, on_gpu: bool) -> dict[str, Any]:
        """The metrics of a course that has ended and trained so many parameters."""
        return {
            "num_examples": len(self.examples.sequences),
            "num_steps": len(self.batches),
            "num_tokens": self.examples.num_tokens(self.batches),
            "final_loss": self.log[-1]["loss"],
            "train_s": self.train_s,
            "setup_s": self.setup_s,
            **self._rates(self.batches[self.first_step :], self.train_s),
            "num_trained_parameters": num_parameters,
            "shared_prefix_tokens": max(prefix.length for prefix in self.examples.prefixes),
            "resumed_at_step": self.first_step if self.first_step > self.branched_at else None,
            "peak_gpu_memory_gib": peak_gpu_memory_gib() if on_gpu else None,
        }
