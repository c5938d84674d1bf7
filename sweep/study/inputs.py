"""A study's inputs from outside, its data and its weights. A plan can do without them, a run cannot."""

from dataclasses import replace

from pipelines.data.sources import FILES, NLISourcesConfig, missing_files, nli_sources_config
from pipelines.errors import UserError
from pipelines.finetune.base_model import PretrainedModelConfig, RandomModelConfig, pretrained_model_config
from pipelines.models.hub import hub_repository
from sweep.study.experiment import Experiment

MOST_NAMED = 4
"""So many missing files are named; a challenge set may have a dozen."""


def missing_inputs(experiment: Experiment) -> tuple[str, ...]:
    """A line for each input that is not here; nothing is said to be built from it."""
    lines = []
    if isinstance(experiment.sources, NLISourcesConfig) and not _is_known(experiment.sources):
        folder = experiment.sources_folder
        missing = missing_files(folder, [challenge.name for challenge in experiment.sources.challenges])
        if not missing or set(FILES) <= set(missing):
            lines.append(f"data: not found at {folder}")
        else:
            more = f" and {len(missing) - MOST_NAMED:,} files more" if len(missing) > MOST_NAMED else ""
            lines.append(f"data: {folder} has no {', '.join(missing[:MOST_NAMED])}{more}")
    if isinstance(experiment.base_model, PretrainedModelConfig) and not _is_known(experiment.base_model):
        path = experiment.base_model.path
        if hub_repository(path) is not None:
            lines.append(f"weights: {path} is not in the Hugging Face cache; a run fetches it")
        else:
            lines.append(f"weights: not found at {path}")
    return tuple(lines)


def with_inputs(experiment: Experiment) -> Experiment:
    """`experiment` with its data and weights described by their content; weights on the hub are fetched for that.

    Raises UserError, with the way out, for what is not there, and for random weights in anything but a rehearsal.
    """
    if isinstance(experiment.base_model, RandomModelConfig) and not experiment.rehearsal:
        raise UserError(
            f"{experiment.name} has random weights, which are for a rehearsal: add --rehearse, or leave -p weights=random out"
        )
    if isinstance(experiment.sources, NLISourcesConfig) and not _is_known(experiment.sources):
        options = {name: getattr(experiment.sources, name) for name in experiment.sources.__dataclass_fields__}
        del options["files"]
        options["challenges"] = [challenge.name for challenge in experiment.sources.challenges]
        experiment = replace(experiment, sources=nli_sources_config(experiment.sources_folder, **options))
    base = experiment.base_model
    if isinstance(base, PretrainedModelConfig) and not _is_known(base):
        described = pretrained_model_config(
            base.path, revision=base.revision, dtype=base.dtype, quantization=base.quantization, download=True
        )
        experiment = replace(experiment, base_model=described)
    return experiment


def _is_known(config: NLISourcesConfig | PretrainedModelConfig) -> bool:
    challenges = config.challenges if isinstance(config, NLISourcesConfig) else ()
    return all(file.is_known for files in (config.files, *(challenge.files for challenge in challenges)) for file in files)
