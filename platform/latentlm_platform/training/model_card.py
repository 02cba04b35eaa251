"""The card that travels with an exported model."""

from latentlm_platform.artifacts import Artifact
from latentlm_platform.experiment.sections import Experiment


def render_model_card(experiment: Experiment, artifact: Artifact) -> str:
    """What the model is, what it was made from, what was measured, how to use it."""
    measured = "\n".join(
        f"| {name} | {value:.6g} |" for name, value in sorted(artifact.metrics.items())
    )
    what = {"latent_lm": "LatentLM", "dit": "Diffusion Transformer", "code_lm": "model of codes"}[
        experiment.model.kind
    ]
    lineage = "\n".join(f"- {stage}: `{key}`" for stage, key in artifact.lineage.items())
    return f"""# {experiment.name}

{experiment.question or f"A {what} trained by an experiment file."}

- kind: {experiment.model.kind}, {experiment.corpus.classes} classes,
  {experiment.corpus.image_size} px, {experiment.corpus.channels} channel(s)
- corpus: {experiment.corpus.source}
- seed: {experiment.seed}, of the model's training {experiment.model_seed}; key: `{artifact.key}`
{lineage}

The weights are the exponential average of training; `experiment.yaml` is the whole experiment.

```python
import latentlm
model, codec, metadata = latentlm.load("FOLDER OF THIS CARD")
```

| at the end of training | value |
|---|---|
{measured}
"""
