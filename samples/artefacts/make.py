"""Makes stand-ins for the documented artefacts, so that the documented manifests load without a network.

    python make.py FOLDER          (the Python of MLServer's environment: `cargo xtask demo` runs it)

Each one lies below FOLDER at the path that its documented `storageUri` names: `gs://seldon-models/mlserver/iris` is
`FOLDER/seldon-models/mlserver/iris`, which an rclone remote `gs` of type `alias` on FOLDER reads. An artefact that was
made by this very program is left alone.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

BUCKET = "seldon-models"


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


def settings(folder: Path, rest: dict) -> None:
    content = {"name": "iris", "implementation": "mlserver_sklearn.SKLearnModel", **rest}
    (folder / "model-settings.json").write_text(json.dumps(content, indent=2) + "\n")


ARTEFACTS = {
    "mlserver/iris": iris_with_settings,
    "scv2/samples/mlserver_1.3.5/iris-sklearn": iris_with_settings,
    "scv2/samples/mlserver_1.5.0/iris-sklearn": iris_with_schema,
    "testing/iris1": iris,  # no settings: the agent writes them
}


def make(root: Path) -> None:
    program = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    for path, write in ARTEFACTS.items():
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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(Path(sys.argv[1]))
