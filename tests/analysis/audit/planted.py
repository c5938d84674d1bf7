"""Texts in English, Chinese and Hindi with known numbers of copies, leaks and flips, and a heuristic of a known strength."""

import random
from dataclasses import dataclass, field

import pyarrow as pa

LABELS = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Language:
    """How sentences are made: words, what stands between them, what ends a sentence, and what a careless copy changes."""

    words: tuple[str, ...]
    between: str
    end: str
    other_end: str


def _products(*parts: str) -> tuple[str, ...]:
    """All words of one piece of each part."""
    words = [""]
    for part in parts:
        words = [word + piece for word in words for piece in part.split()]
    return tuple(words)


LANGUAGES = {
    "english": Language(_products("ba de fi ko lu ma", "n r s t", "a el in or"), " ", ".", "!"),
    # Characters, of which a word has two; there are no spaces.
    "chinese": Language(_products("山 水 火 木 金 土 天 地 人 家 学 校", "大 小 高 低 新 旧 东 西 南 北"), "", "。", "！"),
    # Vowel signs and the virama are marks, without which many of these words would be one.
    "hindi": Language(_products("क ग त द न प ब म", "ा ि ी ु ू े ो", "ल र स"), " ", "।", "!"),
}


@dataclass
class Planted:
    """A table, its test set, and what was planted in it."""

    table: pa.Table
    test: pa.Table
    odds_ratio: float
    counts: dict[str, int] = field(default_factory=dict)


def planted(language: str, num_rows: int = 3_000, *, seed: int = 0, is_clean: bool = False) -> Planted:
    """Pairs of random words, of which the plants are a part; without them where it `is_clean`.

    The hypothesis has words of its premise alone, in an order of their own, in half of the entailments and a tenth of the other
    pairs (an odds ratio of 9), or in a fifth of all.
    """
    source, spoken = random.Random(f"{language} {seed}"), LANGUAGES[language]

    def pair(label: str) -> tuple[list[str], list[str], str]:
        premise = source.sample(spoken.words, 14)
        share = 0.2 if is_clean else 0.5 if label == "entailment" else 0.1
        others = [word for word in spoken.words if word not in premise]
        return premise, source.sample(premise if source.random() < share else others, 9), label

    def written(words: list[str], end: str | None = None) -> str:
        return spoken.between.join(words) + (spoken.end if end is None else end)

    def rows(pairs: list[tuple[list[str], list[str], str]], end: str | None = None) -> list[dict[str, str]]:
        return [{"premise": written(p, end), "hypothesis": written(h, end), "label": label} for p, h, label in pairs]

    pairs = [pair(source.choice(LABELS)) for _ in range(num_rows)]
    tests = [pair(source.choice(LABELS)) for _ in range(400)]
    table, counts = rows(pairs), {"exact": 0, "same_words": 0, "near": 0, "other_label": 0, "leaks": 0}
    if not is_clean:
        counts = {"exact": 60, "same_words": 40, "near": 50, "other_label": 30, "leaks": 45}
        chosen = iter(source.sample(pairs, 180))
        table += rows([next(chosen) for _ in range(60)])
        table += rows([next(chosen) for _ in range(40)], spoken.other_end)
        for premise, hypothesis, label in [next(chosen) for _ in range(50)]:
            changed = [*premise[:-1], source.choice([word for word in spoken.words if word not in premise])]
            table += rows([(changed, hypothesis, label)])
        for premise, hypothesis, label in [next(chosen) for _ in range(30)]:
            other = source.choice([name for name in LABELS if name != label])
            table += rows([(premise, hypothesis, other)])
        table += rows(source.sample(tests, 45))
    return Planted(pa.Table.from_pylist(table), pa.Table.from_pylist(rows(tests)), 1.0 if is_clean else 9.0, counts)


def flipped(language: str, share: float, num_rows: int = 3_000, *, seed: int = 0) -> pa.Table:
    """Single texts whose words tell the label, about so many of whose labels are wrong: columns text, label, is_wrong."""
    source, spoken = random.Random(f"flips {language} {seed}"), LANGUAGES[language]
    half = len(spoken.words) // 2
    of_label = {"negative": spoken.words[:half], "positive": spoken.words[half:]}
    rows = []
    for _ in range(num_rows):
        label, other = source.sample(tuple(of_label), 2)
        # Ten words of its own kind and four of the other: a model of words is nearly always right.
        words = source.sample(of_label[label], 10) + source.sample(of_label[other], 4)
        source.shuffle(words)
        is_wrong = source.random() < share
        text = spoken.between.join(words) + spoken.end
        rows.append({"text": text, "label": other if is_wrong else label, "is_wrong": is_wrong})
    return pa.Table.from_pylist(rows)
