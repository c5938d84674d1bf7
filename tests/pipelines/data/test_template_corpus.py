import random
from collections import Counter, defaultdict

import pytest

from pipelines.data.template_corpus import TemplateCorpusConfig, cell_sizes, draw, prepare_template_corpus
from pipelines.data.template_rules import rules
from pipelines.errors import UserError
from pipelines.tasks.examples import read_examples
from pipelines.tasks.heuristics import HANS_HEURISTICS, has_lexical_overlap, is_subsequence
from pipelines.tasks.nli import Label

SETS = ("train", "dev", "template_test", "template_probe")
SMALL = TemplateCorpusConfig(seed=3, num_train=1_200, num_dev=90, num_test=300, num_probe_per_group=40)


def read_all(folder):
    return {name: read_examples(folder / f"{name}.parquet").to_pylist() for name in SETS}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    output = tmp_path_factory.mktemp("corpus")
    metrics = prepare_template_corpus(SMALL, str(output))
    return read_all(output), metrics


def test_sets_are_balanced_and_have_the_asked_sizes(corpus):
    sets, _ = corpus
    for name, third in (("train", 400), ("dev", 30), ("template_test", 100)):
        labels = Counter(row["label"] for row in sets[name])
        assert labels == {"entailment": third, "neutral": third, "contradiction": third}
    groups = Counter((row["heuristic"], row["label"]) for row in sets["template_probe"])
    assert groups == {(name, label): 40 for name in HANS_HEURISTICS for label in ("entailment", "non-entailment")}


def test_overlap_has_the_stated_correlation_with_entailment(tmp_path):
    config = TemplateCorpusConfig(num_train=1_500, overlap_share=0.4, overlap_entailment_rate=0.8, overlap_neutral_share=0.6)
    metrics = prepare_template_corpus(config, str(tmp_path))
    overlap = Counter(
        row["label"] for row in read_all(tmp_path)["train"] if has_lexical_overlap(row["premise"], row["hypothesis"])
    )
    # 500 entailments, 40% of them with overlap; 200 are 80% of 250; of the other 50, 60% are neutral.
    assert overlap == {"entailment": 200, "neutral": 30, "contradiction": 20}
    assert {label: metrics[f"train/{label}/lexical_overlap"] for label in overlap} == overlap


def test_a_heuristic_that_is_never_wrong(tmp_path):
    config = TemplateCorpusConfig(num_train=600, overlap_share=1.0, overlap_entailment_rate=1.0)
    prepare_template_corpus(config, str(tmp_path))
    for row in read_all(tmp_path)["train"]:
        assert has_lexical_overlap(row["premise"], row["hypothesis"]) == (row["label"] == "entailment")


def test_every_probe_pair_satisfies_the_heuristic_it_is_named_for(corpus):
    for row in corpus[0]["template_probe"]:
        assert has_lexical_overlap(row["premise"], row["hypothesis"]), row
        assert is_subsequence(row["premise"], row["hypothesis"]) == (row["heuristic"] != "lexical_overlap"), row


def test_each_group_of_the_probe_has_several_even_subcases(corpus):
    counts = defaultdict(Counter)
    for row in corpus[0]["template_probe"]:
        counts[row["heuristic"], row["label"]][row["subcase"]] += 1
    for subcases in counts.values():
        assert len(subcases) >= 3
        assert max(subcases.values()) - min(subcases.values()) <= 1


def test_no_pair_occurs_twice(corpus):
    pairs = Counter((row["premise"], row["hypothesis"]) for rows in corpus[0].values() for row in rows)
    assert pairs.most_common(1)[0][1] == 1


def test_same_seed_same_corpus_other_seed_another(corpus, tmp_path):
    prepare_template_corpus(SMALL, str(tmp_path))
    assert read_all(tmp_path) == corpus[0]
    other = TemplateCorpusConfig(seed=4, num_train=1_200, num_dev=90, num_test=300, num_probe_per_group=40)
    prepare_template_corpus(other, str(tmp_path))
    assert {row["premise"] for row in read_all(tmp_path)["train"]} != {row["premise"] for row in corpus[0]["train"]}


def test_a_larger_training_set_leaves_the_test_sets_alone(corpus, tmp_path):
    larger = TemplateCorpusConfig(seed=3, num_train=1_500, num_dev=90, num_test=300, num_probe_per_group=40)
    prepare_template_corpus(larger, str(tmp_path))
    found = read_all(tmp_path)
    assert all(found[name] == corpus[0][name] for name in SETS[1:])


def test_sentences_are_short_lower_case_and_end_in_a_token_of_their_own(corpus):
    words = set()
    for rows in corpus[0].values():
        for row in rows:
            for sentence, longest in ((row["premise"], 14), (row["hypothesis"], 11)):
                tokens = sentence.split(" ")
                assert tokens[-1] == "." and 3 <= len(tokens) <= longest
                assert all(token.isalpha() and token.islower() for token in tokens[:-1] if token != ",")
                words.update(tokens)
    assert 100 < len(words) < 200


def test_golden_cell_sizes():
    config = TemplateCorpusConfig(overlap_share=0.5, overlap_entailment_rate=0.5, overlap_neutral_share=0.75)
    E, N, C = Label.ENTAILMENT, Label.NEUTRAL, Label.CONTRADICTION
    # 35, 35 and 34 a label (104 = 3 x 34 + 2); round(17.5) = 18 overlap entailments and as many others.
    assert cell_sizes(config, 104) == {
        (E, True): 18,
        (E, False): 17,
        (N, True): 14,
        (N, False): 21,
        (C, True): 4,
        (C, False): 30,
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_train": 0}, ["num_train=0"]),
        ({"overlap_share": 1.5}, ["overlap_share=1.5", "0 to 1"]),
        ({"overlap_entailment_rate": 0.0}, ["overlap_entailment_rate=0"]),
        ({"overlap_share": 1.0, "overlap_entailment_rate": 0.2}, ["neutral", "lower the share"]),
    ],
)
def test_impossible_configs_are_refused(arguments, words):
    with pytest.raises(UserError) as error:
        TemplateCorpusConfig(**arguments)
    for word in words:
        assert word in str(error.value)


def test_more_than_the_rules_can_give_is_an_error():
    few = [rule for rule in rules() if rule.premise == "no {a} {i}" and rule.hypothesis == "some {a} {i}"]
    with pytest.raises(UserError, match=r"new pairs of 1,000; ask for a smaller corpus"):
        draw(few, 1_000, random.Random(0), 0.0, {})
