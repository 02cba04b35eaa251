"""Best fit of whole documents into rows of one length, by a look-ahead of a few documents.

A row begins with the oldest document that waits, so that none waits for ever; then comes the oldest
of a modality that the row lacks, if one fits, so that rows mix what there is; then those that fill
the row best, long ones before short ones. Only what is pending counts: the same documents give the
same rows.
"""

from collections.abc import Sequence

LOOKAHEAD = 32  # documents of a lane that wait for a row, at least
LOOKAHEAD_ROWS = 2  # and how many rows they could fill: of short documents more must wait


def best_fit(sizes: Sequence[int], latents: Sequence[bool], *, length: int) -> list[int]:
    """Which of the waiting documents (in the order of their age) make the next row.

    `sizes` in positions, 1 … length each; `latents`: whether a document holds any.
    """
    chosen, room = [0], length - sizes[0]
    others = (i for i, has in enumerate(latents) if has != latents[0] and sizes[i] <= room)
    if (other := next(others, None)) is not None:
        chosen.append(other)
        room -= sizes[other]
    rest = [i for i in range(len(sizes)) if i not in chosen and sizes[i] <= room]
    rest.sort(key=lambda i: (sizes[i], -i))
    return chosen + _fullest([sizes[i] for i in rest], rest, room=room)


def _fullest(sizes: Sequence[int], names: Sequence[int], *, room: int) -> list[int]:
    """The names of those whose sizes add up to most of `room`, the last ones preferred."""
    mask = (1 << room + 1) - 1
    sums = [1]  # bit s of sums[i]: some of the first i sizes add up to s
    for size in sizes:
        sums.append((sums[-1] | sums[-1] << size) & mask)
    left, chosen = sums[-1].bit_length() - 1, []
    for size, name, before in zip(*map(reversed, (sizes, names, sums[:-1])), strict=True):
        if size <= left and before >> left - size & 1:
            chosen.append(name)
            left -= size
    return chosen
