"""Where the time goes: a device's kernels, and the parts of a vLLM engine's step."""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

KERNELS_SHOWN = 25
STEPS = 20


class Profile:
    """What kernels the device spends its time in between `start` and `stop`, which writes it."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self.profiler: Any = None

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
            one.key: ((one.self_device_time_total if on_gpu else one.self_cpu_time_total) / 1e3, one.count)
            for one in self.profiler.key_averages()
        }
        self.profiler = None
        found = {
            "step_ms": ms / num_steps,
            "busy_ms_per_step": sum(one for one, _ in totals.values()) / num_steps,
            "launches_per_step": sum(count for _, count in totals.values()) / num_steps,
            "kernels": [
                {"name": name[:120], "ms_per_step": totals[name][0] / num_steps, "per_step": totals[name][1] / num_steps}
                for name in sorted(totals, key=lambda name: -totals[name][0])[:KERNELS_SHOWN]
            ],
        }
        self.path.write_text(json.dumps(found))
        print(json.dumps(found), flush=True)

    def _wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


def profile_engine(engine: Any, path: Path) -> dict[str, float]:
    """Milliseconds of a decoding step of `engine` (a `vllm.LLM` in this process whose requests have been added) by part.

    To be called with a full batch that has more than 50 tokens to go. Parts run one after another on the CPU, while the device
    is at the step before; `other` is the wait for that step and whatever is in no part. What the device's kernels took is
    written to `path`.
    """
    llm = engine.llm_engine
    core = llm.engine_core.engine_core
    spent: dict[str, float] = defaultdict(float)
    for owner, name in (
        (core.scheduler, "schedule"),
        (core.scheduler, "update_from_output"),
        (core.model_executor, "execute_model"),
        (core.model_executor, "sample_tokens"),
        (llm.output_processor, "process_outputs"),
    ):
        setattr(owner, name, _clocked(getattr(owner, name), name, spent))
    # The first steps read prompts.
    for _ in range(10):
        llm.step()
    spent.clear()
    started = time.perf_counter()
    for _ in range(STEPS):
        llm.step()
    total = time.perf_counter() - started
    parts = {name: seconds / STEPS * 1e3 for name, seconds in spent.items()}
    profile = Profile(path, "cuda" if _on_gpu() else "cpu")
    profile.start()
    for _ in range(STEPS):
        llm.step()
    profile.stop(STEPS)
    return {**parts, "other": total / STEPS * 1e3 - sum(parts.values()), "step_ms": total / STEPS * 1e3}


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
