"""The vocabulary of models with text: tiktoken's cl100k_base and five words of our own.

The ranks come from a file (an export carries it). Our words take the last ids of whatever size a
model's vocabulary has: with |V| = 100,288 (Table 8) they are 100,283 … 100,287, which cl100k_base
leaves free.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import tiktoken
from tiktoken.load import load_tiktoken_bpe

CL100K_SIZE: Final = 100_288
SPLIT_PATTERN: Final = (  # of cl100k_base: where words may not merge across
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


class SpecialIds(NamedTuple):
    """END of a document; CONTINUE latents (our addition); EOD, BOD of latents (§2.2); PAD.

    PAD also stands for every word of a condition that is dropped for guidance.
    """

    end: int
    go_on: int
    eod: int
    bod: int
    pad: int


def special_ids(vocabulary: int) -> SpecialIds:
    """The last five ids of a vocabulary of that size."""
    return SpecialIds(*range(vocabulary - len(SpecialIds._fields), vocabulary))


class Vocabulary:
    """Text ↔ ids below `size`, by the ranks of a `.tiktoken` file."""

    def __init__(self, ranks_path: Path | str, *, size: int = CL100K_SIZE) -> None:
        if not Path(ranks_path).is_file():
            raise ValueError(f"{ranks_path} does not exist; give a .tiktoken file of ranks")
        ranks = load_tiktoken_bpe(str(ranks_path))
        self.size, self.special, self.path = size, special_ids(size), Path(ranks_path)
        if max(ranks.values()) >= self.special.end:
            raise ValueError(
                f"a vocabulary of {size} has no room for {len(self.special)} words beside the"
                f" {len(ranks)} of {ranks_path}; raise model.vocabulary"
            )
        names = {f"<|{name}|>": i for name, i in self.special._asdict().items()}
        self._encoding = tiktoken.Encoding(
            "latentlm", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=names
        )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: what looks like one of our own words is only its letters."""
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; our own words and ids without a word have none."""
        known = self._encoding.n_vocab
        plain = [i for i in ids if i < min(self.special.end, known)]
        return self._encoding.decode([i for i in plain if self._is_word(i)])

    def _is_word(self, token_id: int) -> bool:
        try:
            self._encoding.decode_single_token_bytes(token_id)
        except KeyError:
            return False
        return True
