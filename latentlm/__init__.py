"""LatentLM (arXiv 2412.08635) in pure PyTorch: shapes and mathematics, nothing of any cluster.

Tensor names end in their shape: B batch, T packed position, D model width, Z latent width,
N latents of an item, V vocabulary, H heads, K head width, S audio sample,
C·Y·X image channels, rows, columns.
"""
