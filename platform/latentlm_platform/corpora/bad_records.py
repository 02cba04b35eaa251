"""The records of a corpus that cannot be used: counted by kind and class, told, too many refused.

Counts are merged from chunk to chunk; of the records themselves at most `MAX_EXAMPLES` are kept,
so that nothing here grows with the corpus.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from latentlm_platform.corpora.records import BadRecord
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus
from latentlm_platform.tracking.client import TrackedRun

MAX_EXAMPLES = 1_000


class BadTally:
    """How many records are bad, by (kind, group), and the first of them as rows of a table."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: list[dict[str, str]] = []

    @property
    def total(self) -> int:
        """All bad records, whether their row was kept or not."""
        return self.counts.total()

    def add(self, bad: BadRecord, *, split: str = "") -> None:
        """Count one record of a split."""
        self.counts[bad.kind, bad.group] += 1
        if len(self.examples) < MAX_EXAMPLES:
            row = {"key": bad.key, "kind": bad.kind, "reason": bad.reason, "class": bad.group}
            self.examples.append({"split": split, **row})

    def merge(self, other: "BadTally") -> None:
        """Add those of another part of the corpus; merge parts in order to get equal tables."""
        self.counts += other.counts
        self.examples += other.examples[: MAX_EXAMPLES - len(self.examples)]

    def state(self) -> dict[str, Any]:
        """As JSON can hold it: {"counts": {kind: {group: n}}, "examples": [row, …]}."""
        counts: dict[str, dict[str, int]] = {}
        for (kind, group), count in sorted(self.counts.items()):
            counts.setdefault(kind, {})[group] = count
        return {"counts": counts, "examples": self.examples}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "BadTally":
        """The tally that `state` wrote."""
        tally = cls()
        for kind, groups in state["counts"].items():
            tally.counts.update({(kind, group): count for group, count in groups.items()})
        tally.examples = list(state["examples"])
        return tally


class BadRecords:
    """The bad records of a run or sweep: metrics, table, and the limit that they are held to."""

    def __init__(self, tally: BadTally) -> None:
        self.tally = tally

    @classmethod
    def of(cls, *summaries: dict[str, Any]) -> "BadRecords":
        """Those of encoding passes, by the `bad_records` of their summaries.

        Equal tallies are of the same corpus, which passes of several codecs have met: they count
        once.
        """
        states = {json.dumps(s["bad_records"], sort_keys=True): s["bad_records"] for s in summaries}
        tally = BadTally()
        for state in states.values():
            tally.merge(BadTally.from_state(state))
        return cls(tally)

    @classmethod
    def listed(cls, records: Iterable[BadRecord], *, split: str) -> "BadRecords":
        """Those of a sample."""
        tally = BadTally()
        for record in records:
            tally.add(record, split=split)
        return cls(tally)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.tally.total

    @property
    def rows(self) -> list[dict[str, str]]:
        """The first `MAX_EXAMPLES` of them: split, key, kind, reason and class."""
        return self.tally.examples

    def counts(self) -> dict[str, float]:
        """`bad_records`, and `bad_records_KIND` of each kind there is."""
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.tally.counts.items():
            kinds[f"bad_records_{kind}"] += count
        return {"bad_records": float(self.total)} | {k: float(n) for k, n in kinds.items()}

    def worst_classes(self, most: int = 5) -> str:
        """The classes with the most bad records, as `cat 12, dog 3`; "" where none is known."""
        groups: Counter[str] = Counter()
        for (_, group), count in self.tally.counts.items():
            groups[group] += count if group else 0
        return ", ".join(f"{group} {count}" for group, count in groups.most_common(most) if count)

    def sentence(self) -> str:
        """How many, of which classes, where they are listed, and whether the list was cut."""
        worst = self.worst_classes()
        classes = f" (most of {worst})" if worst else ""
        cut = f" the first {len(self.rows):,} are listed" if self.total > len(self.rows) else ""
        where = f"{cut} in bad_records.json" if cut else " see bad_records.json"
        return f"{self.total:,} records cannot be used{classes};{where} in MLflow"

    def refuse_too_many(self, corpus: Corpus, total: int) -> None:
        """UserError where more than `corpus.max_bad_fraction` of all records cannot be used."""
        bad = self.total
        if bad > corpus.max_bad_fraction * total:
            kinds = ", ".join(f"{count:g} {name}" for name, count in self.counts().items())
            worst = self.worst_classes()
            classes = f"; most of class {worst}" if worst else ""
            raise UserError(
                f"{bad} of {total} records of {corpus.source} cannot be used ({kinds}{classes}),"
                f" more than corpus.max_bad_fraction = {corpus.max_bad_fraction:g}: repair it or"
                " raise that",
                exit_code=1,
            )

    def table(self) -> list[dict[str, str]]:
        """The rows, and one that says how many more there are."""
        rows, more = list(self.rows), self.total - len(self.rows)
        if more:
            reason = f"{more:,} more are counted, not listed"
            rows.append({"split": "", "key": "…", "kind": "", "reason": reason, "class": ""})
        return rows

    def log(self, parent: TrackedRun) -> None:
        """Counts and table for the run or sweep; they replace those of an earlier attempt."""
        parent.replace_metrics("bad_records", self.counts())
        parent.log_table(self.table(), "bad_records.json")
