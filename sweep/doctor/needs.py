"""What a study needs that this machine may lack: data, weights, GPUs and CPUs, tokens. Nothing is fetched."""

import math
import os
from collections.abc import Iterator

from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig
from pipelines.models.hub import hub_repository
from pipelines.models.quantization import FP8, LEAST_FOR_FP8
from sweep.doctor.findings import Finding
from sweep.doctor.machine import compute_capabilities, token
from sweep.graph.queue import check_resources
from sweep.run.session import RayOptions, local_capacity
from sweep.study.experiment import Experiment
from sweep.study.generators import EndpointGenerator, PromptedGenerator
from sweep.study.grid import build_grid
from sweep.study.inputs import missing_inputs

HUB_TOKEN_FILES = ("~/.cache/huggingface/token",)


def look_at_study(experiment: Experiment) -> Iterator[Finding]:
    """What of the study's inputs is not here, and whether its largest steps fit on this machine."""
    missing = missing_inputs(experiment)
    for what in ("data", "pool", "weights"):
        for line in missing:
            kind, _, text = line.partition(": ")
            if kind == what:
                yield _of_missing(what, text)
    if not any(line.startswith(("data", "pool")) for line in missing):
        yield Finding("data", "ok", "all of it is here")
    if not any(line.startswith("weights") for line in missing):
        yield Finding("weights", "ok", "here" if list(checkpoints(experiment)) else "made by the study itself")
    try:
        check_resources(build_grid(experiment), local_capacity(RayOptions()))
        yield Finding("resources", "ok", "the largest step fits on this machine")
    except UserError as error:
        found, _, way_out = str(error).rpartition(": ")
        yield Finding("resources", "fault", found or str(error), way_out or "see docs/cluster.md")
    yield from _precision(experiment)
    yield from _tokens(experiment)


def _precision(experiment: Experiment) -> Iterator[Finding]:
    """Whether this machine's GPUs compute as models in FP8 ask; without a GPU a CPU does for a base, slowly."""
    needing = []
    if any(base.quantization == FP8 for base in checkpoints(experiment)):
        needing.append(("the base model computes", "base_precision", "a base_model without quantization"))
    if experiment.generation is not None and experiment.generation.quantization == FP8:
        needing.append(("the generator writes", "generation_precision", "a generation without quantization"))
    least = min(compute_capabilities(), default=math.inf)
    for what, option, without in needing:
        instead = f"-p {option}=bfloat16" if option in experiment.parameters else without
        if least < LEAST_FOR_FP8:
            yield Finding(
                "precision",
                "fault",
                f"{what} in fp8, and a GPU here has compute capability {least}, without matrix units for it",
                f"take one of {LEAST_FOR_FP8} or above, or {instead}",
            )
            return
    if needing:
        yield Finding("precision", "ok", "what there is computes in fp8")


def _of_missing(what: str, text: str) -> Finding:
    if "a run fetches it" in text:
        if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
            return Finding(
                what, "fault", f"{text.partition(';')[0]}, and HF_HUB_OFFLINE is set", "unset it, or fetch the weights before"
            )
        return Finding(
            what, "warning", text.partition(";")[0], "a run fetches it: see that there is room and, with --network, a way"
        )
    found, _, way_out = text.partition("; ")
    return Finding(
        what, "fault", found, way_out or "see docs/data.md" if what != "weights" else "see -p model and docs/models.md"
    )


def checkpoints(experiment: Experiment) -> Iterator[PretrainedModelConfig]:
    """The weights from outside that the study begins with."""
    for base in (experiment.base_model, experiment.task_model_base):
        if isinstance(base, PretrainedModelConfig):
            yield base
    if isinstance(experiment.generator, PromptedGenerator):
        yield experiment.generator.base_model


def is_on_hub(experiment: Experiment) -> bool:
    """Whether the study has weights on the Hugging Face hub."""
    return any(hub_repository(base.path) is not None for base in checkpoints(experiment))


def _tokens(experiment: Experiment) -> Iterator[Finding]:
    if is_on_hub(experiment):
        where = token("HF_TOKEN", os.environ, *HUB_TOKEN_FILES)
        if where:
            yield Finding("hub's token", "ok", f"present ({where})")
        else:
            yield Finding("hub's token", "warning", "not present", "set HF_TOKEN if the weights are gated; others need none")
    if isinstance(experiment.generator, EndpointGenerator):
        name = experiment.generator.endpoint.api_key_env
        if token(name, os.environ):
            yield Finding("endpoint's key", "ok", f"present ({name})")
        else:
            yield Finding(
                "endpoint's key",
                "warning",
                f"not present ({name})",
                f"set {name} if the endpoint asks for one; your own may not",
            )
