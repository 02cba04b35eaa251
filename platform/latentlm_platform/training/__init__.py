"""Worker groups and what they run: the loops of model and codec, ZeRO, checkpoints, exports."""
