"""The audit of anyone's labelled texts: its options, its findings and their verdicts, its page. Knows no study and no record.

from analysis.audit import AuditSettings, audit
"""

from analysis.audit.audit import AuditSettings, audit
from analysis.audit.found import Audit, Finding, audit_json

__all__ = ["Audit", "AuditSettings", "Finding", "audit", "audit_json"]
