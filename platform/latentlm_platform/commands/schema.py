"""Print the JSON Schema of experiment files, for completion and checks while typing.

    latentlm schema > ~/.latentlm/experiment.schema.json

An editor with a YAML language server reads it where a file's first line is
`# yaml-language-server: $schema=/path/to/experiment.schema.json`.
"""

import argparse
import json

from latentlm_platform.commands import Result


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing to configure."""


def execute(arguments: argparse.Namespace) -> Result:
    from latentlm_platform.experiment.json_schema import json_schema

    schema = json_schema()
    if arguments.json is None:
        print(json.dumps(schema, indent=2))
    return Result(schema)
