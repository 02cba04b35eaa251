"""Points of a sweep as trials on Ray Tune; the ledger, and what the results say."""
