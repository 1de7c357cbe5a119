"""Writes an artefact of each kind: settings of MLServer, models for its Python runtime and for Triton's Python backend."""

import json
import textwrap
from pathlib import Path


def settings(folder: Path, rest: dict, name: str = "iris") -> None:
    content = {"name": name, "implementation": "mlserver_sklearn.SKLearnModel", **rest}
    (folder / "model-settings.json").write_text(json.dumps(content, indent=2) + "\n")


def triton(
    folder: Path,
    python: str,
    inputs: dict,
    outputs: dict,
    batch: int = 0,
    versions: int = 1,
    before: str = "",
    config: bool = True,
) -> None:
    """A model of Triton's Python backend: tensors are given as `name: (data type, dimensions)`.

    `python` is the body of `answer(tensor)`, which returns the outputs by name; `tensor(name)` reads an input. `VERSION`
    is the number of the version's folder. `before` stands above it. Without `config` the model tells Triton its tensors.
    """
    body = textwrap.indent(textwrap.dedent(python).strip(), " " * 4)
    text = TRITON_MODEL.replace("BODY", body).replace("BEFORE\n", before + "\n" if before else "")
    if config:
        name = folder.name.split(".")[1]
        head = f'name: "{name}"\nbackend: "python"\nmax_batch_size: {batch}\n'
        (folder / "config.pbtxt").write_text(head + tensors("input", inputs) + tensors("output", outputs))
    else:
        listed = [[{"name": name, "data_type": f"TYPE_{type}", "dims": dims} for name, (type, dims) in all.items()] for all in (inputs, outputs)]
        text += TRITON_TELLS.replace("INPUTS", str(listed[0])).replace("OUTPUTS", str(listed[1])).replace("BATCH", str(batch))
    for version in range(1, versions + 1):
        (folder / str(version)).mkdir()
        (folder / str(version) / "model.py").write_text(text.replace("VERSION", str(version)))


def tensors(kind: str, all: dict) -> str:
    lines = [f'  {{ name: "{name}" data_type: TYPE_{type} dims: {list(dims)} }}' for name, (type, dims) in all.items()]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]\n"


TRITON_MODEL = """import numpy as np
import triton_python_backend_utils as pb

BEFORE

def answer(tensor):
BODY


def respond(request):
    try:
        outputs = answer(lambda name: pb.get_input_tensor_by_name(request, name).as_numpy())
    except Exception as error:
        return pb.InferenceResponse(error=pb.TritonError(str(error)))
    return pb.InferenceResponse([pb.Tensor(name, data) for name, data in outputs.items()])


class TritonPythonModel:
    def execute(self, requests):
        return [respond(request) for request in requests]
"""

TRITON_TELLS = """
    @staticmethod
    def auto_complete_config(config):
        for tensor in INPUTS:
            config.add_input(tensor)
        for tensor in OUTPUTS:
            config.add_output(tensor)
        config.set_max_batch_size(BATCH)
        return config
"""


def python(folder: Path, name: str, code: str, extra: dict | None = None) -> None:
    """A model of MLServer's Python runtime: the class `Model` of `code`."""
    (folder / "model.py").write_text(textwrap.dedent(code).lstrip())
    parameters = {"version": "v0.1.0"} | ({"extra": extra} if extra else {})
    content = {"name": name, "implementation": "model.Model", "parameters": parameters}
    (folder / "model-settings.json").write_text(json.dumps(content, indent=2) + "\n")
