"""What a look at the broker and the workers found: a verdict each, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How bad a finding is."""

    #: As it should be.
    OK = "ok"
    #: Works, and will hurt some day; or could not be looked at.
    WARN = "warn"
    #: Jobs do not run, or may be lost.
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at, in a word or two.
        verdict: how bad it is.
        detail: what was found, without a full stop; never a secret, a config or a payload.
        fix: what to do, without a full stop; empty when it is ok.
    """

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""

    @property
    def sentence(self) -> str:
        """Detail and fix, for a log."""
        return f"{self.detail}. {self.fix}." if self.fix else f"{self.detail}."


def ok(check: str, detail: str) -> Finding:
    """Find that all is as it should be."""
    return Finding(check=check, verdict=Verdict.OK, detail=detail)


def warn(check: str, detail: str, fix: str) -> Finding:
    """Find something that will hurt some day."""
    return Finding(check=check, verdict=Verdict.WARN, detail=detail, fix=fix)


def fail(check: str, detail: str, fix: str) -> Finding:
    """Find something by which jobs do not run, or may be lost."""
    return Finding(check=check, verdict=Verdict.FAIL, detail=detail, fix=fix)
