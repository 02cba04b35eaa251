"""What happened, where others can see it: journals, the outbox, MLflow, provenance."""
