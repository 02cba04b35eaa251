"""Records → posteriors: the frozen codec, the encoding pass, the latent cache, laws of noise."""
