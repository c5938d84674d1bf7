"""Tables for other programs."""

from typing import Any

import pandas as pd


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """A frame as CSV without its index, of which no spreadsheet takes a text for a formula: a text that begins like one gets a
    quotation mark in front, as OWASP has it, and carriage returns become spaces. Numbers stay numbers.
    """
    plain = frame.copy()
    for place, column in enumerate(frame.columns):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            plain.isetitem(place, frame[column].astype(object).map(_no_formula))
    plain.columns = pd.Index([_no_formula(column) for column in frame.columns])
    return plain.to_csv(index=False).encode()


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    mark = "'" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else ""
    # pandas does not quote a carriage return, at which some spreadsheets begin a new row.
    return mark + value.replace("\r", " ")
