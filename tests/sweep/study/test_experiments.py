"""The parameters of the built-in studies reach the configs that they name."""

from collections.abc import Callable

import pytest

from pipelines.data.sources import FILES, NLISourcesConfig
from pipelines.finetune.base_model import PretrainedModelConfig
from pipelines.identity import UNKNOWN, FileHash
from sweep.study import experiments
from sweep.study.experiment import Experiment
from sweep.study.experiments import demo, mini, paper, paper_fast
from sweep.study.paper import PAPER_GENERATOR, PAPER_TASK_MODEL


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = NLISourcesConfig(tuple(FileHash(name, UNKNOWN) for name in FILES))
    monkeypatch.setattr(experiments, "nli_sources_config", lambda data, challenges=(): unknown)
    weights = (FileHash("model.safetensors", UNKNOWN),)
    monkeypatch.setattr(
        experiments,
        "pretrained_model_config",
        lambda model, **_: PretrainedModelConfig(weights, path=model, model_type="llama"),
    )


def test_minis_generator_may_see_a_part_of_the_data() -> None:
    assert mini().generator.finetune.epochs == 1
    for recipe in ("full", "paper"):
        study = mini(recipe=recipe, generator_epochs=0.4)
        assert study.generator.finetune.epochs == 0.4
        assert study.task_model == mini(recipe=recipe).task_model


@pytest.mark.parametrize(
    ("study", "general", "challenge"), [(demo, "template_test", "template_probe"), (mini, "mnli_matched", "hans")]
)
def test_a_words_heuristic_is_looked_for_where_it_holds(study: Callable[..., Experiment], general: str, challenge: str) -> None:
    of_word, built_in = study(heuristic="hypothesis:never=contradiction"), study(heuristic="subsequence")
    assert (of_word.blindspot_set, built_in.blindspot_set) == (general, challenge)
    assert of_word.blindspot_slice == "holds/hypothesis_says_never/non-contradiction"
    assert of_word.evaluation.heuristics == (of_word.heuristic,) and built_in.evaluation.heuristics == ()
    assert of_word.general_set == built_in.general_set == general


def test_minis_paper_recipe_is_the_papers_at_ten_times_its_rate() -> None:
    study = mini(recipe="paper")
    for ours, papers in ((study.task_model, PAPER_TASK_MODEL), (study.generator.finetune, PAPER_GENERATOR)):
        assert ours.learning_rate == 2e-4
        assert {name for name, value in vars(ours).items() if value != getattr(papers, name)} <= {"learning_rate", "log_every"}


@pytest.mark.parametrize("study", [demo, mini, paper, paper_fast])
def test_every_study_has_as_many_generators_as_it_is_told(study: Callable[..., Experiment]) -> None:
    assert study().generators == 1
    assert study(seeds=(0, 1, 2), generators=3).generators == 3
