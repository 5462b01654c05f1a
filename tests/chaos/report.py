"""The report of a chaos run: for people a table, for programs JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos.ledger import FATES
from tests.chaos.orders import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.chaos.backlog import Sample
    from tests.chaos.ledger import Account
    from tests.chaos.storm import Hit

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run went.

    Attributes:
        seed: what it was drawn from.
        seconds: how long the storm was to be.
        rate: jobs per second.
        began: seconds since the epoch.
        drained: seconds from the end of the storm until nothing was left to do; None: never.
        account: of all jobs.
        hits: the faults.
        samples: the backlog, over time.
        interrupted: whether somebody stopped it.
        folder: where notes and logs are.
    """

    seed: int
    seconds: float
    rate: float
    began: float
    drained: float | None
    account: Account
    hits: Sequence[Hit]
    samples: Sequence[Sample]
    interrupted: bool
    folder: str

    @property
    def problems(self) -> Sequence[str]:
        """What must not have happened."""
        if self.drained is None and not self.interrupted:
            return [*self.account.problems, "the backlog was not worked off when nothing moved"]
        return self.account.problems

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        account = self.account
        columns = [fate for fate in FATES if fate == "lost" or account.total(fate)]
        yield f"seed {self.seed}: {self.seconds:g} s of faults, {self.rate:g} jobs/s"
        yield ""
        rows = [["kind", "sent", *columns]]
        for kind in KINDS:
            counts = [account.fates[kind, fate] for fate in columns]
            rows.append([kind, *(f"{count:,}" for count in (sum(counts), *counts))])
        totals = [account.total(fate) for fate in columns]
        rows.append(["all", *(f"{count:,}" for count in (sum(totals), *totals))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            cells = [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
            yield f"| {' | '.join([row[0].ljust(widths[0]), *cells])} |"
            if number == 0:
                yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"
        yield ""
        met = Counter(f"{hit.kind} {hit.target}" for hit in self.hits)
        yield "faults      " + _counts(dict(sorted(met.items())))
        yield "early       " + f"{account.early:,}"
        yield "duplicates  " + _counts(account.duplicates)
        yield "uncertain   " + f"{account.uncertain:,} sends whose answer was lost"
        late = sorted(late for _, late in account.latenesses)
        if late:
            p50, p99 = (late[int(len(late) * share)] for share in (0.5, 0.99))
            yield f"late        median {p50:.3f} s, p99 {p99:.3f} s, most {late[-1]:.3f} s"
        if self.interrupted:
            yield "interrupted before its time"
        if self.drained is not None:
            yield f"drained     {self.drained:.1f} s after the storm"
        for hit in self.hits:
            if hit.kind == "hung":
                yield f"\nworker {hit.target} did not end when it was told to:\n{hit.note}"
        yield ""
        yield from self.problems[:_MOST_PROBLEMS]
        if self.problems:
            yield f"{len(self.problems):,} problems; notes and logs are in {self.folder}"
        else:
            yield "every job is accounted for"

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        account = self.account
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "rate": self.rate,
            "began": self.began,
            "drained": self.drained,
            "interrupted": self.interrupted,
            "fates": {kind: {fate: account.fates[kind, fate] for fate in FATES} for kind in KINDS},
            "early": account.early,
            "duplicates": account.duplicates,
            "uncertain": account.uncertain,
            "problems": list(self.problems),
            "faults": [asdict(hit) for hit in self.hits],
            "backlog": [asdict(sample) for sample in self.samples],
            "lateness": account.latenesses,
        }


def _counts(counts: dict[str, int]) -> str:
    words = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"{sum(counts.values()):,}" + (f" ({words})" if words else "")
