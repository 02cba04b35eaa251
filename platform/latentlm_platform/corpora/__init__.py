"""Source → files → chunk table → records of parts, divided into trained on and held out."""
