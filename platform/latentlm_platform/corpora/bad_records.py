"""The records of a corpus that cannot be used: counted by kind, told, and too many refused."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from latentlm_platform.errors import UserError
from latentlm_platform.experiment.sections import Corpus
from latentlm_platform.tracking.client import TrackedRun


@dataclass(frozen=True)
class BadRecords:
    """Each with its key, kind and reason, as the encoding pass wrote them down."""

    rows: tuple[dict[str, str], ...]

    @classmethod
    def of(cls, *summaries: dict[str, Any]) -> "BadRecords":
        """Those of encoding passes, by their summaries; the same record once."""
        rows = (row for summary in summaries for row in summary["bad_records"])
        return cls(tuple({json.dumps(row): row for row in rows}.values()))

    def counts(self) -> dict[str, float]:
        """`bad_records`, and `bad_records_KIND` of each kind there is."""
        kinds = Counter(f"bad_records_{row['kind']}" for row in self.rows)
        return {"bad_records": float(len(self.rows))} | {k: float(n) for k, n in kinds.items()}

    def refuse_too_many(self, corpus: Corpus, total: int) -> None:
        """UserError where more than `corpus.max_bad_fraction` of all records cannot be used."""
        bad = len(self.rows)
        if bad > corpus.max_bad_fraction * total:
            kinds = ", ".join(f"{count:g} {name}" for name, count in self.counts().items())
            raise UserError(
                f"{bad} of {total} records of {corpus.source} cannot be used ({kinds}), more than"
                f" corpus.max_bad_fraction = {corpus.max_bad_fraction:g}: repair it or raise that",
                exit_code=1,
            )

    def log(self, parent: TrackedRun) -> None:
        """Counts and table for the run or sweep; they replace those of an earlier attempt."""
        parent.replace_metrics("bad_records", self.counts())
        parent.log_table(list(self.rows), "bad_records.json")
