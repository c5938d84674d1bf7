"""The audit of anyone's labelled texts: options, findings, verdicts, page. Knows no study and no record."""
