"""Raw corpora: where they lie, what their records are, and public ones by name."""
