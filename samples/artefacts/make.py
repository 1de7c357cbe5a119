"""Makes stand-ins for the documented artefacts, so that the documented manifests load without a network.

    python make.py FOLDER          (the Python of MLServer's environment: `cargo xtask demo` runs it)

Each one lies below FOLDER at the path that its documented `storageUri` names: `gs://seldon-models/mlserver/iris` is
`FOLDER/seldon-models/mlserver/iris`, which an rclone remote `gs` of type `alias` on FOLDER reads. An artefact that was
made by this very program is left alone. Those of XGBoost, LightGBM and MLflow need their packages on PYTHONPATH, and are
left out without them.
"""

import hashlib
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import zoo
from kinds import python, settings, triton

BUCKET = "seldon-models"
PROGRAM = [Path(__file__).with_name(name) for name in ("make.py", "kinds.py", "zoo.py")]


def iris(folder: Path) -> None:
    """One-vs-rest logistic regression; says 2 for [1, 2, 3, 4], as the documented model does."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    features, species = load_iris(return_X_y=True)
    model = OneVsRestClassifier(LogisticRegression(solver="liblinear")).fit(features, species)
    assert model.predict([[1, 2, 3, 4]]) == [2]
    joblib.dump(model, folder / "model.joblib")


def iris_with_settings(folder: Path) -> None:
    """With settings that name the file; no schema, so its metadata lists no tensors, as documented."""
    iris(folder)
    settings(folder, {"parameters": {"uri": "./model.joblib", "version": "v0.1.0"}})


def iris_with_schema(folder: Path) -> None:
    """With the settings printed in the documentation's page on inference."""
    iris(folder)
    settings(
        folder,
        {
            "inputs": [{"name": "predict", "datatype": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "predict", "datatype": "INT64", "shape": [-1, 1]}],
            "parameters": {"version": "1"},
        },
    )


ONE = {"INPUT": ("FP32", [4])}, {"OUTPUT": ("FP32", [4])}


def simple(folder: Path) -> None:
    pair = lambda name: {f"{name}{index}": ("INT32", [16]) for index in range(2)}
    body = 'a, b = tensor("INPUT0"), tensor("INPUT1")\nreturn {"OUTPUT0": a + b, "OUTPUT1": a - b}'
    triton(folder, body, pair("INPUT"), pair("OUTPUT"), batch=8)


def number(operation: str):
    return lambda folder: triton(folder, f'return {{"OUTPUT": (tensor("INPUT") {operation}).astype(np.float32)}}', *ONE)


def conditional(folder: Path) -> None:
    """Only one of its outputs is there: what CHOICE says."""
    body = 'chosen = 0 if tensor("CHOICE").item() == 0 else 1\nreturn {f"OUTPUT{chosen}": tensor(f"INPUT{chosen}")}'
    pair = lambda name: {f"{name}{index}": ("FP32", [4]) for index in range(2)}
    triton(folder, body, {"CHOICE": ("INT32", [1]), **pair("INPUT")}, pair("OUTPUT"))


def check(folder: Path) -> None:
    """Passes its input on, or nothing where a number is negative; the documentation names no artefact for it."""
    body = 'data = tensor("INPUT")\nreturn {} if (data < 0).any() else {"OUTPUT": data}'
    triton(folder, body, {"INPUT": ("INT32", [16])}, {"OUTPUT": ("INT32", [16])}, batch=8)


def outlier_error(folder: Path) -> None:
    """Passes its input on, or fails where a number is beyond 100; the documentation names no artefact for it."""
    body = """
        data = tensor("INPUT")
        if (abs(data) > 100).any():
            raise ValueError("outlier: a value is beyond 100")
        return {"OUTPUT": data}
    """
    triton(folder, body, *ONE)


def multi_version(folder: Path) -> None:
    """Version 1 adds 10, version 2 multiplies by 10."""
    body = 'data = tensor("INPUT")\nreturn {"OUTPUT": (data + 10 if VERSION == 1 else data * 10).astype(np.float32)}'
    triton(folder, body, *ONE, versions=2)


def counter(folder: Path) -> None:
    """One more than its input, and a tensor `continue` below ten, `stop` from there on."""
    code = """
        from mlserver import MLModel
        from mlserver.codecs import NumpyCodec, StringCodec
        from mlserver.types import InferenceResponse


        class Model(MLModel):
            async def predict(self, payload):
                number = NumpyCodec.decode_input(payload.inputs[0]) + 1
                number = number.reshape(-1, 1)
                word = "continue" if number.item() < 10 else "stop"
                return InferenceResponse(
                    model_name=self.name,
                    model_version=self.version,
                    outputs=[
                        NumpyCodec.encode_output(name="output", payload=number),
                        StringCodec.encode_output(name=word, payload=[""]),
                    ],
                )
    """
    python(folder, "counter", code)


def identity(name: str, seconds: float = 0):
    """Answers what it is asked, after a pause."""
    code = """
        import asyncio

        from mlserver import MLModel
        from mlserver.types import InferenceResponse, ResponseOutput


        class Model(MLModel):
            async def predict(self, payload):
                extra = (self.settings.parameters and self.settings.parameters.extra) or {}
                await asyncio.sleep(float(extra.get("delay", 0)))
                same = [
                    ResponseOutput(
                        name=tensor.name,
                        shape=tensor.shape,
                        datatype=tensor.datatype,
                        parameters=tensor.parameters,
                        data=tensor.data,
                    )
                    for tensor in payload.inputs
                ]
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=same)
    """
    return lambda folder: python(folder, name, code, {"delay": seconds} if seconds else None)


def pandas_query(folder: Path) -> None:
    """The rows for which the parameter `query` holds, and a column `status` that says so."""
    code = """
        import pandas as pd

        from mlserver import MLModel
        from mlserver.codecs import PandasCodec


        class Model(MLModel):
            async def load(self):
                extra = (self.settings.parameters and self.settings.parameters.extra) or {}
                if "query" not in extra:
                    raise ValueError(f"model {self.name} has no parameter query")
                self.query = extra["query"]
                return True

            async def predict(self, payload):
                found = PandasCodec.decode_request(payload).query(self.query)
                if found.empty:
                    found = pd.DataFrame({"status": ["no rows satisfied " + self.query]})
                else:
                    found = found.assign(status="row satisfied " + self.query)
                # Text columns as objects, which is how the codec knows text, whatever pandas calls them.
                found["status"] = found["status"].astype(object)
                return PandasCodec.encode_response(self.name, found, self.version)
    """
    python(folder, "pandasquery", code)


def income_classifier(folder: Path) -> None:
    """Says 1 where a capital gain or many hours of schooling and work promise it, 0 for the documented rows."""
    import joblib
    from sklearn.tree import DecisionTreeClassifier

    rows, rich = zoo.income_rows()
    model = DecisionTreeClassifier(max_depth=6, random_state=0).fit(rows, rich)
    documented = [
        [53, 4, 0, 2, 8, 4, 2, 0, 0, 0, 60, 9],
        [47, 4, 1, 1, 1, 0, 4, 1, 0, 0, 68, 9],
        [47, 4, 1, 1, 1, 3, 4, 1, 0, 0, 40, 9],
    ]
    assert not model.predict(documented).any()
    joblib.dump(model, folder / "model.joblib")
    settings(folder, {"parameters": {"uri": "./model.joblib", "version": "v0.1.0"}}, "income")


def rows_to(name: str, output: str, formula: str):
    """A model that answers with one tensor; `formula` makes it of `rows`, the first input as numbers."""
    code = f"""
        import numpy as np

        from mlserver import MLModel
        from mlserver.codecs import NumpyCodec
        from mlserver.types import InferenceResponse


        class Model(MLModel):
            async def predict(self, payload):
                rows = NumpyCodec.decode_input(payload.inputs[0])
                answer = {formula}
                output = NumpyCodec.encode_output(name="{output}", payload=answer)
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
    """
    return lambda folder: python(folder, name, code)


def explainer(folder: Path) -> None:
    """Asks the explained model about the row with one column at a time set to 0, and names those that change the answer."""
    code = """
        import asyncio
        import json
        import urllib.request

        from mlserver import MLModel
        from mlserver.codecs import NumpyCodec, StringCodec
        from mlserver.types import InferenceResponse


        class Model(MLModel):
            async def predict(self, payload):
                row = NumpyCodec.decode_input(payload.inputs[0])[0]
                without = lambda column: [0 if column == other else value for other, value in enumerate(row)]
                rows = [row] + [without(column) for column in range(len(row))]
                first, *others = await asyncio.to_thread(self.ask, rows)
                columns = [column for column, answer in enumerate(others) if answer != first]
                explanation = {
                    "meta": {"name": "AnchorTabular", "type": ["blackbox"]},
                    "data": {"prediction": [first], "columns": columns, "instance": [float(value) for value in row]},
                }
                output = StringCodec.encode_output(name="explanation", payload=[json.dumps(explanation)])
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

            def ask(self, rows):
                data = [float(value) for row in rows for value in row]
                tensor = {"name": "predict", "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": data}
                request = urllib.request.Request(
                    self.settings.parameters.extra["infer_uri"],
                    json.dumps({"inputs": [tensor]}).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)["outputs"][0]["data"]
    """
    python(folder, "income-explainer", code)


CYCLE = "scv2/examples/cyclic-pipeline"
INCOME = "scv2/examples/mlserver_1.3.5/income"
CIFAR10 = "scv2/examples/mlserver_1.3.5/cifar10"
TRITON = "scv2/samples/triton_23-03"
ARTEFACTS = {
    "mlserver/iris": iris_with_settings,
    "scv2/samples/mlserver_1.3.5/iris-sklearn": iris_with_settings,
    "scv2/samples/mlserver_1.5.0/iris-sklearn": iris_with_schema,
    "testing/iris1": iris,  # no settings: the agent writes them
    "triton/simple": simple,
    f"{TRITON}/add10": number("+ 10"),
    f"{TRITON}/mul10": number("* 10"),
    f"{TRITON}/conditional": conditional,
    f"{TRITON}/multi-version": multi_version,
    "triton/add20": number("+ 20"),
    "triton/check": check,
    "triton/outlier-error": outlier_error,
    f"{CYCLE}/counter": counter,
    f"{CYCLE}/identity-loop": identity("identity-loop", 0.001),
    f"{CYCLE}/identity-output": identity("identity-output"),
    "scv2/examples/pandasquery": pandas_query,
    # Numbers of years, hours and money, as numbers between 0 and 1.
    f"{INCOME}/preprocessor": rows_to("income-preprocess", "output", "rows / [100, 8, 6, 3, 8, 5, 4, 1, 1e5, 1e4, 100, 10]"),
    f"{INCOME}/classifier": income_classifier,
    f"{INCOME}/drift-detector": rows_to("income-drift", "is_drift", "np.array([[int(rows[:, 0].mean() > 60)]])"),
    f"{INCOME}/outlier-detector": rows_to(
        "income-outlier", "is_outlier", "(rows > 1).any(axis=1).astype(np.int64).reshape(1, -1)"
    ),
    f"{INCOME}/explainer": explainer,
    "scv2/samples/mlserver_1.4.0/income-sklearn/classifier": income_classifier,
    "scv2/samples/mlserver_1.5.0/income-sklearn/anchor-explainer": explainer,
    f"{CIFAR10}/outlier-detector": rows_to(
        "cifar10-outlier", "is_outlier", "(rows.std(axis=(1, 2, 3)) > 0.4).astype(np.int64).reshape(1, -1)"
    ),
    f"{CIFAR10}/drift-detector": rows_to("cifar10-drift", "is_drift", "np.array([[int(rows.mean() > 0.7)]])"),
}


def make(root: Path) -> None:
    program = hashlib.sha256(b"".join(path.read_bytes() for path in PROGRAM)).hexdigest()
    for path, write in wanted().items():
        folder = root / BUCKET / path
        # Beside the artefact, not in it: an agent copies the whole folder.
        marker = folder.with_name(f".{folder.name}.made-by")
        if folder.is_dir() and marker.is_file() and marker.read_text() == program:
            continue
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(staging)
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
        marker.write_text(program)
        print(f"made {BUCKET}/{path}", file=sys.stderr)


def wanted() -> dict:
    """All artefacts but those whose package is not there."""
    trained = {path: write for path, (package, write) in zoo.RUNTIMES.items() if find_spec(package)}
    return ARTEFACTS | zoo.ARTEFACTS | trained


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]))
