"""Articles by sound, and no codes where none are wanted."""

import io
import os
import sys

import pytest
from rich.text import Text

from pipelines.terminal import console, with_article, write_every_character


@pytest.mark.parametrize(
    "words",
    [
        *("an original set", "a synthetic set", "an m5.large", "a c5.large", "a g6.xlarge", "an r7i.large", "a p5.48xlarge"),
        *("an h200", "an a100", "an l40s", "a t4", "an rtx4090", "a llama", "an opt", "an mpt", "a gpt2", "an xlm-roberta"),
        *("a unigram", "an 8-bit", "an 11th", "a 100th"),
    ],
)
def test_an_article_goes_by_the_sound(words: str) -> None:
    assert with_article(words.split(" ", 1)[1]) == words


def test_no_color_leaves_no_code_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def written() -> str:
        stream = io.StringIO()
        console(file=stream, force_terminal=True).print(Text("dim", style="dim"), Text("red", style="bold red"))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in written()
    monkeypatch.setenv("NO_COLOR", "1")
    assert written() == "dim red\n"


@pytest.mark.parametrize(("encoding", "before"), [("utf-8", "strict"), ("ascii", "surrogateescape")])
def test_a_files_name_that_is_no_text_is_printed_as_it_is(encoding: str, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, errors=before))
    write_every_character()
    print(os.fsdecode(b"pool\xff.csv"), "\u2212", flush=True)
    assert written.getvalue() == b"pool\xff.csv " + {"utf-8": "\u2212", "ascii": "-"}[encoding].encode() + b"\n"
