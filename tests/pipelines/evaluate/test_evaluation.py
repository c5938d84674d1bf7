import numpy as np
import pyarrow as pa
import pytest

from pipelines.evaluate.scoring import accuracy_rows, flat_metrics, is_predicted


def logits_of(*shares: tuple[float, float, float]) -> np.ndarray:
    """Logits whose softmax is `shares`: (entailment, neutral, contradiction)."""
    return np.log(np.array(shares, dtype=np.float32))


# The largest share is entailment's in 0 and 1, but only in 0 it is more than the other two together.
LOGITS = logits_of((0.6, 0.3, 0.1), (0.4, 0.3, 0.3), (0.2, 0.7, 0.1), (0.1, 0.2, 0.7))


def accuracies(rows: list[dict[str, object]], folding: str, num_labels: int = 2) -> dict[str, tuple[object, object]]:
    chosen = [row for row in rows if row["folding"] == folding and row["num_labels"] == num_labels]
    found = {str(row["slice"]): (row["num_correct"], row["num_examples"]) for row in chosen}
    assert len(found) == len(chosen)
    return found


def test_the_two_foldings_differ_where_entailment_leads_without_a_majority() -> None:
    assert is_predicted(LOGITS, 0, "argmax").tolist() == [True, True, False, False]
    assert is_predicted(LOGITS, 0, "summed").tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="folding='mean' is none of argmax, summed"):
        is_predicted(LOGITS, 0, "mean")


def test_logits_of_any_size_are_summed_without_overflow() -> None:
    # Entailment leads by 0.5: a share of 1 / (1 + 2 e^-0.5) = 0.452; by 1: 1 / (1 + 2 e^-1) = 0.576.
    logits = np.array([[1000.5, 1000, 1000], [1001, 1000, 1000], [-1e4, -2e4, -2e4]], dtype=np.float32)
    assert is_predicted(logits, 0, "summed").tolist() == [False, True, True]


def test_half_of_the_probability_is_not_more_than_half() -> None:
    assert is_predicted(np.array([[0.0, 0.0, -np.inf], [1e-6, 0.0, -np.inf]]), 0, "summed").tolist() == [False, True]


def test_hans_is_scored_by_heuristic_label_and_subcase_in_both_foldings() -> None:
    table = pa.table(
        {
            "label": ["entailment", "non-entailment", "non-entailment", "entailment"],
            "heuristic": ["lexical_overlap", "lexical_overlap", "lexical_overlap", "subsequence"],
            "subcase": ["le_conjunction", "ln_passive", "ln_conjunction", "se_adjective"],
        }
    )
    rows = accuracy_rows("hans", table, LOGITS)
    assert accuracies(rows, "argmax") == {
        "all": (2, 4),
        "lexical_overlap": (2, 3),
        "lexical_overlap/entailment": (1, 1),
        "lexical_overlap/non-entailment": (1, 2),
        "subsequence": (0, 1),
        "subsequence/entailment": (0, 1),
        "subcase/le_conjunction": (1, 1),
        "subcase/ln_conjunction": (1, 1),
        "subcase/ln_passive": (0, 1),
        "subcase/se_adjective": (0, 1),
    }
    # Item 1, right only when the probabilities are summed.
    right = {"all": (3, 4), "lexical_overlap": (3, 3), "lexical_overlap/non-entailment": (2, 2), "subcase/ln_passive": (1, 1)}
    assert accuracies(rows, "summed") == accuracies(rows, "argmax") | right
    assert flat_metrics(rows) == pytest.approx(
        {
            "hans/accuracy": 0.5,
            "hans/accuracy_summed": 0.75,
            "hans/lexical_overlap/accuracy": 2 / 3,
            "hans/lexical_overlap/entailment/accuracy": 1.0,
            "hans/lexical_overlap/non-entailment/accuracy": 0.5,
            "hans/subsequence/accuracy": 0.0,
            "hans/subsequence/entailment/accuracy": 0.0,
        }
    )


def test_three_labels_are_scored_as_they_are_and_folded_both_ways() -> None:
    # Item 2 is contradiction and predicted neutral: wrong of three, right of two.
    table = pa.table({"label": ["entailment", "entailment", "contradiction", "contradiction"]})
    rows = accuracy_rows("mnli_matched", table, LOGITS)
    assert accuracies(rows, "argmax", 3) == {"all": (3, 4)}
    assert accuracies(rows, "summed", 3) == {}
    assert accuracies(rows, "argmax") == {"all": (4, 4)}
    assert accuracies(rows, "summed") == {"all": (3, 4)}
    assert flat_metrics(rows) == {
        "mnli_matched/accuracy": 0.75,
        "mnli_matched/accuracy_2way": 1.0,
        "mnli_matched/accuracy_2way_summed": 0.75,
    }


def test_no_examples_and_logits_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="0 logits for 0 examples"):
        accuracy_rows("hans", pa.table({"label": pa.array([], pa.string())}), LOGITS[:0])
    with pytest.raises(ValueError, match="4 logits for 1 examples"):
        accuracy_rows("hans", pa.table({"label": ["entailment"]}), LOGITS)
