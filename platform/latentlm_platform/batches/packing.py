"""Best fit of whole documents into rows of one length, by a look-ahead of a few documents.

A row begins with the oldest document that waits, so that none waits for ever; then comes a document
of a modality that the row lacks, if one fits, so that rows mix what there is; then always the
longest that still fits. Only what is pending counts: the same documents give the same rows.
"""

from collections.abc import Sequence

LOOKAHEAD = 64  # documents of a lane that wait for a row


def best_fit(sizes: Sequence[int], latents: Sequence[bool], *, length: int) -> list[int]:
    """Which of the waiting documents (in the order of their age) make the next row.

    `sizes` in positions, 1 … length each; `latents`: whether a document holds any.
    """
    chosen, room = [0], length - sizes[0]
    both = any(latents) and not all(latents)
    while room > 0:
        waiting = [i for i in range(len(sizes)) if i not in chosen and sizes[i] <= room]
        if both and len({latents[i] for i in chosen}) == 1:
            waiting = [i for i in waiting if latents[i] != latents[chosen[0]]] or waiting
        if not waiting:
            break
        best = max(waiting, key=lambda i: (sizes[i], -i))
        chosen.append(best)
        room -= sizes[best]
    return chosen
