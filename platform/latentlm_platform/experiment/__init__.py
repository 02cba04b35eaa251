"""YAML → Experiment: sections, rules across them, files, sweeps and claims; errors with places."""
