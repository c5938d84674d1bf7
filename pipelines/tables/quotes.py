"""Quotation marks of a CSV file that are left open: such a cell goes on into the rows behind it, up to another cell's mark.

Readers are lenient, and take what stands behind the mark that closes a cell for more of its text. A CSV writer leaves none.
"""

import re
from typing import BinaryIO

CHUNK_BYTES = 4 << 20
BOM = b"\xef\xbb\xbf"
CELL = re.compile(rb'"(?:[^"]++|"")*+"(?=[^"])')


def open_quote(binary: BinaryIO, delimiter: str, most_bytes: int) -> str:
    """Where a cell's quotation mark is left open, in words, and what to do; nothing of a file that leaves none open.

    A mark is open where the file, or the `most_bytes` of a row, end within its cell, and where the mark that closes it has text
    behind it and a line break before it. One that is closed right before the end of another cell cannot be told from a cell
    that has line breaks.
    """
    ends = re.escape(delimiter).encode() + rb"\r\n"
    # What is no cell with marks around it; such a cell; one with text behind it, on one line; a mark within other text.
    parts = (b'[^"]++', b'(?<=[%b])"(?:[^"]++|"")*+"(?=[%b])', b'(?<=[%b])"(?:[^"\\r\\n]++|"")*+"[^%b]*+', b'(?<![%b])"')
    closed = re.compile(b"(?:%b)*+" % b"|".join(part.replace(b"%b", ends) for part in parts))
    num_lines, content, is_whole = 0, b"\n" + binary.read(len(BOM)).removeprefix(BOM), False
    while not is_whole:
        chunk = binary.read(CHUNK_BYTES)
        is_whole = not chunk
        content += chunk or b"\n"
        # Up to the last whole line: behind it a mark may be half of two.
        last = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
        found = closed.match(content, 1, last)
        assert found is not None
        place = found.end()
        if place < last:
            cell = CELL.match(content, place)
            begins = num_lines + _num_lines(content[1:place]) + 1
            if cell is None and (is_whole or len(content) - place > most_bytes):
                last_line = begins + _num_lines(content[place:].rstrip(b"\r\n"))
                return (
                    f"line {begins:,} has a quotation mark that is not closed up to line {last_line:,}; close it, or, if it is "
                    "text, write it twice in an enclosed cell"
                )
            if cell is not None and content[cell.end() : cell.end() + 1] not in (delimiter.encode(), b"\r", b"\n"):
                return (
                    f"line {begins:,} has a quotation mark that is not closed before one in line "
                    f"{begins + _num_lines(cell[0]):,} that has text behind it; close it, or, if one is text, write it twice "
                    "in an enclosed cell"
                )
        num_lines += _num_lines(content[1:place])
        content = content[place - 1 :]
    return ""


def _num_lines(content: bytes) -> int:
    return content.count(b"\n") or content.count(b"\r")
