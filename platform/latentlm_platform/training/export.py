"""Exports: a trained model with its codec, its experiment and a card, in one folder.

`latentlm.load` reads such a folder without this package.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from latentlm.catalogue import build_model
from latentlm.load import load_codec, load_weights, save_export
from latentlm_platform.artifacts import Artifact
from latentlm_platform.errors import UserError
from latentlm_platform.experiment.files import resolved_yaml
from latentlm_platform.experiment.sections import Experiment
from latentlm_platform.training.model_card import render_model_card
from latentlm_platform.training.model_training import ModelTraining


def export_model(
    training: ModelTraining, artifact: Artifact, *, class_names: Sequence[str] = ()
) -> None:
    """Weights, codec, experiment and card of a training that has ended.

    The metadata holds the experiment as YAML, the keys of what the model was made from, and the
    names of the classes as a JSON list, in the order of their numbers; the list is empty where the
    corpus has none.
    """
    experiment = training.experiment
    model = build_model(experiment.model_settings())
    model.load_state_dict(torch.load(training.export, weights_only=True))
    export = artifact.folder / "export"
    text = resolved_yaml(experiment)
    metadata = {
        "experiment": text,
        "key": artifact.key,
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        **artifact.lineage,
    }
    save_export(
        export, model=model, codec=load_codec(training.inputs.codec_folder), metadata=metadata
    )
    (export / "experiment.yaml").write_text(text, encoding="utf-8")
    card = render_model_card(experiment, artifact)
    (export / "MODEL_CARD.md").write_text(card, encoding="utf-8")


def check_initial_weights(experiment: Experiment) -> None:
    """The export that training starts from fits the model; UserError where it does not."""
    folder = experiment.model.initial_weights
    if folder is None:
        return
    try:
        load_weights(build_model(experiment.model_settings()), Path(folder))
    except ValueError as error:
        raise UserError(f"model.initial_weights = {folder} cannot be used: {error}") from error
