"""Profiles of where the time goes: a device's kernels, and the parts of a vLLM engine's step."""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

KERNELS_SHOWN = 60
STEPS = 20


class Profile:
    """Kernels that the device spends its time in between `start` and `stop`, which leaves them in `result` and in a file."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path, self.device = path, device
        self.profiler: Any = None
        self.result: dict[str, Any] = {}

    def start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        self._wait()
        self.profiler = profile(activities=[ProfilerActivity.CUDA if self.device == "cuda" else ProfilerActivity.CPU])
        self.profiler.start()
        self.started = time.perf_counter()

    def stop(self, num_steps: int) -> None:
        """End; what was profiled were `num_steps` steps. Nothing happens if it was never started."""
        if self.profiler is None:
            return
        self._wait()
        ms = (time.perf_counter() - self.started) * 1e3
        self.profiler.stop()
        on_gpu = self.device == "cuda"
        totals = {
            kernel.key: ((kernel.self_device_time_total if on_gpu else kernel.self_cpu_time_total) / 1e3, kernel.count)
            for kernel in self.profiler.key_averages()
        }
        self.profiler = None
        self.result = {
            "step_ms": ms / num_steps,
            "busy_ms_per_step": sum(total_ms for total_ms, _ in totals.values()) / num_steps,
            "launches_per_step": sum(count for _, count in totals.values()) / num_steps,
            "kernels": [
                {"name": name[:120], "ms_per_step": totals[name][0] / num_steps, "per_step": totals[name][1] / num_steps}
                for name in sorted(totals, key=lambda name: -totals[name][0])[:KERNELS_SHOWN]
            ],
        }
        if self.path:
            self.path.write_text(json.dumps(self.result))
        print(json.dumps(self.result), flush=True)

    def _wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


class EngineProfile:
    """Parts and kernels of an engine's steps: `STEPS` steps of `llm` (a `vllm.LLM` in this process) from its step `first` on.

    Made before the first of them, in whichever way they come. `parts` are, once they are over, milliseconds a step: parts run
    one after another on the CPU, while the device is at the step before; `other` is the wait for that step and whatever is in
    no part, `between` what passes from one step to the next. `result` has beside them what the device's kernels took in
    as many further steps.
    """

    def __init__(self, llm: Any, *, first: int) -> None:
        engine = llm.llm_engine
        core = engine.engine_core.engine_core
        self.parts: dict[str, float] = {}
        self._spent: dict[str, float] = defaultdict(float)
        for owner, name in (
            (core.scheduler, "schedule"),
            (core.scheduler, "update_from_output"),
            (core.model_executor, "execute_model"),
            (core.model_executor, "sample_tokens"),
            (engine.output_processor, "process_outputs"),
            (engine, "add_request"),
        ):
            setattr(owner, name, _clocked(getattr(owner, name), name, self._spent))
        self._profile = Profile(None, "cuda" if _on_gpu() else "cpu")
        self._steps, self._first = -1, first
        self._step, engine.step = engine.step, self.step

    @property
    def result(self) -> dict[str, Any]:
        return {"parts": self.parts, "kernels": self._profile.result}

    def step(self) -> Any:
        self._steps += 1
        if self._steps == self._first:
            self._spent.clear()
            self._started = time.perf_counter()
        elif self._steps == self._first + STEPS:
            total = time.perf_counter() - self._started
            inside = self._spent.pop("step")
            added = self._spent.pop("add_request", 0.0)
            spent = {**self._spent, "other": inside - sum(self._spent.values()), "add_request": added}
            spent |= {"between": total - inside - added, "step_ms": total}
            self.parts = {name: seconds / STEPS * 1e3 for name, seconds in spent.items()}
            self._profile.start()
        elif self._steps == self._first + 2 * STEPS:
            self._profile.stop(STEPS)
        started = time.perf_counter()
        try:
            return self._step()
        finally:
            self._spent["step"] += time.perf_counter() - started


def _clocked(function: Any, name: str, spent: dict[str, float]) -> Any:
    @functools.wraps(function)
    def clocked(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return clocked


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
