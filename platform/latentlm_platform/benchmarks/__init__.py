"""Speed against the libraries one would use instead: `latentlm bench`, `make bench`.

Each row runs ours and a peer in turn, in one process, on the same weights, sizes and precision,
and counts only if both give the same output first. One file a row; `peers_*.py` are the peers.
"""
