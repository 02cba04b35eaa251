"""Documents of one modality each, for a vocabulary of 30."""

import numpy as np

from latentlm.sequence import Document, LatentSpan, TextSpan
from latentlm.vocabulary import special_ids

END, CONTINUE, EOD, BOD, PAD = special_ids(30)
TEXT_ONLY: Document = (TextSpan(np.array([5, 6, 7, 8, 9, END])),)
LATENT_ONLY: Document = (
    TextSpan(np.array([BOD]), scored=False),
    LatentSpan(np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)),
    TextSpan(np.array([EOD]), scored=False),
)
