"""Bad records are counted, whatever their number; only the first are kept."""

import json

import pytest

from latentlm_platform.corpora.bad_records import MAX_EXAMPLES, BadRecords, BadTally
from latentlm_platform.corpora.records import BadRecord
from latentlm_platform.errors import UserError
from making_corpora import corpus


def tally(kind: str, group: str, count: int, *, first: int = 0) -> BadTally:
    found = BadTally()
    for number in range(first, first + count):
        found.add(BadRecord(f"{number}", kind, "why", group), split="train")
    return found


def test_counts_by_kind_and_class_survive_json_and_merging() -> None:
    whole = BadTally()
    for part in (tally("too_large", "cat", 2), tally("too_large", "dog", 1), tally("cut", "", 3)):
        whole.merge(BadTally.from_state(json.loads(json.dumps(part.state()))))
    assert whole.state()["counts"] == {"cut": {"": 3}, "too_large": {"cat": 2, "dog": 1}}
    assert whole.total == len(whole.examples) == 6
    assert whole.examples[0] == {
        "split": "train", "key": "0", "kind": "too_large", "reason": "why", "class": "cat",
    }  # fmt: skip
    records = BadRecords(whole)
    assert records.counts() == {"bad_records": 6, "bad_records_too_large": 3, "bad_records_cut": 3}
    assert records.sentence() == (
        "6 records cannot be used (most of cat 2, dog 1); see bad_records.json in MLflow"
    )


def test_of_many_only_the_first_are_kept_and_the_sentence_says_so() -> None:
    whole = tally("cut", "", 600)
    whole.merge(tally("cut", "", 600, first=600))
    whole.merge(tally("cut", "", 1200, first=1200))
    assert len(tally("cut", "", 1200).examples) == MAX_EXAMPLES
    assert whole.total == 2400
    assert [row["key"] for row in whole.examples] == [str(n) for n in range(MAX_EXAMPLES)]
    assert "the first 1,000 are listed" in BadRecords(whole).sentence()
    assert BadRecords(whole).table()[-1]["reason"] == "1,400 more are counted, not listed"
    assert len(BadRecords(whole).table()) == MAX_EXAMPLES + 1


def test_passes_of_several_codecs_over_one_corpus_count_once() -> None:
    one, other = tally("cut", "cat", 2).state(), tally("cut", "cat", 3).state()
    summaries = [{"bad_records": state} for state in (one, other, one)]
    assert BadRecords.of(*summaries).total == 5
    assert BadRecords.of().counts() == {"bad_records": 0}


def test_too_many_are_refused_and_their_classes_named() -> None:
    records = BadRecords(tally("cut", "cat", 11))
    records.refuse_too_many(corpus(max_bad_fraction=0.1), 110)
    with pytest.raises(UserError, match=r"11 of 109 .*most of class cat 11\), more than"):
        records.refuse_too_many(corpus(max_bad_fraction=0.1), 109)
