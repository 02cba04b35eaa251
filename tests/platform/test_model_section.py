"""The model sections of the schema and the settings they become have the same defaults."""

import dataclasses

import pytest

from latentlm.settings import DiTSettings, LatentLMSettings
from latentlm_platform.experiment_model import DiTModel, Model


@pytest.mark.parametrize(
    ("section", "settings"), [(Model, LatentLMSettings), (DiTModel, DiTSettings)]
)
def test_defaults_are_written_twice_and_agree(section: type, settings: type) -> None:
    fields = section.model_fields  # type: ignore[attr-defined]
    unshared = {field.name for field in dataclasses.fields(settings)} - set(fields)
    compared = 0
    for field in dataclasses.fields(settings):
        if field.default is dataclasses.MISSING or field.name in ("kind", *unshared):
            continue
        assert fields[field.name].default == field.default, field.name
        compared += 1
    assert compared >= 1
