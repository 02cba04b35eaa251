"""Which record comes when, documents, packed rows, and their streams to Train workers."""
