"""Documentation, 7564-7883: asks the models of the zoo and prints what the page prints. The pictures there cannot be had.

    zoo.py URL cifar10|mnist-onnx|mnist-pytorch|wine
"""

import json
import sys
import urllib.request

import numpy as np

url, model = sys.argv[1:]
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WINE = {
    "fixed acidity": 7.4,
    "volatile acidity": 0.7,
    "citric acid": 0,
    "residual sugar": 1.9,
    "chlorides": 0.076,
    "free sulfur dioxide": 11,
    "total sulfur dioxide": 34,
    "density": 0.9978,
    "pH": 3.51,
    "sulphates": 0.56,
    "alcohol": 9.4,
}


def tensor(name, data):
    return {"name": name, "data": data.flatten().tolist(), "datatype": "FP32", "shape": list(data.shape)}


def ask(inputs):
    headers = {"Content-Type": "application/json", "seldon-model": model}
    request = urllib.request.Request(url, json.dumps({"inputs": inputs}).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def seven():
    """The last 7 of scikit-learn's digits, in the middle of 28 by 28."""
    from sklearn.datasets import load_digits

    pictures, numbers = load_digits(return_X_y=True)
    small = pictures[numbers == 7][-1].reshape(8, 8) / 16
    return np.pad(np.kron(small, np.ones((3, 3))), 2)[None, None]


if model == "cifar10":
    picture = np.zeros((1, 32, 32, 3))
    # The second of ten bands is the brightest.
    picture[:, 4:8] = 1
    output = ask([tensor("input_1", picture)])["outputs"][0]
    print(output["shape"], output["datatype"], CLASSES[np.argmax(output["data"])])
elif model == "wine":
    answer = ask([tensor(name, np.array([value], dtype=float)) for name, value in WINE.items()])
    outputs = [[output["name"], output["shape"], output["datatype"], len(output["data"])] for output in answer["outputs"]]
    print([answer["model_name"], answer["model_version"], len(answer["id"]), outputs])
    print("between 3 and 8:", 3 < answer["outputs"][0]["data"][0] < 8)
else:
    name = {"mnist-onnx": "Input3", "mnist-pytorch": "x__0"}[model]
    print(np.argmax(ask([tensor(name, seven())])["outputs"][0]["data"]))
