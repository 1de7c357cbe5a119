"""The documented model zoo, explainers and Huggingface's models: small stand-ins under the documented paths."""

import textwrap
from pathlib import Path

from kinds import python, settings, triton

# Columns of the income data, and of the wine data, as the documented requests name them.
INCOME = [
    "Age",
    "Workclass",
    "Education",
    "Marital Status",
    "Occupation",
    "Relationship",
    "Race",
    "Sex",
    "Capital Gain",
    "Capital Loss",
    "Hours per week",
    "Country",
]
WINE = [
    "fixed acidity",
    "volatile acidity",
    "citric acid",
    "residual sugar",
    "chlorides",
    "free sulfur dioxide",
    "total sulfur dioxide",
    "density",
    "pH",
    "sulphates",
    "alcohol",
]


def income_rows():
    """Rows of numbers, and whether a capital gain or many hours of schooling and work promise a high income."""
    import numpy as np

    random = np.random.default_rng(0)
    highest = [90, 8, 6, 3, 8, 5, 4, 1, 20000, 2000, 80, 10]
    rows = np.stack([random.integers(0, top + 1, 4000) for top in highest], axis=1).astype(float)
    rich = (rows[:, 8] > 10000) | ((rows[:, 2] >= 5) & (rows[:, 10] > 50))
    return rows, rich.astype(int)


def income_xgboost(folder: Path) -> None:
    """A regression by XGBoost, below 0 for a low income. No settings: the agent writes them."""
    import pandas as pd
    import xgboost

    rows, rich = income_rows()
    model = xgboost.XGBRegressor(n_estimators=20, max_depth=4, random_state=0)
    model.fit(pd.DataFrame(rows, columns=INCOME), 4 * rich - 2)
    model.save_model(folder / "model.json")


def income_lightgbm(folder: Path) -> None:
    """The probability of a high income, by LightGBM. No settings: the agent writes them."""
    import lightgbm
    import pandas as pd

    rows, rich = income_rows()
    columns = [name.replace(" ", "_") for name in INCOME]
    data = lightgbm.Dataset(pd.DataFrame(rows, columns=columns), rich)
    wanted = {"objective": "binary", "num_leaves": 7, "verbose": -1, "num_threads": 1}
    lightgbm.train(wanted, data, 20).save_model(folder / "model.bst")


def wine_mlflow(folder: Path) -> None:
    """A run's model as MLflow writes it: quality from 3 to 8, more with alcohol, less with acid. No settings."""
    import mlflow.sklearn
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import Ridge

    random = np.random.default_rng(0)
    rows = random.uniform(0, [16, 2, 1, 16, 1, 72, 289, 2, 5, 2, 15], (500, len(WINE)))
    frame = pd.DataFrame(rows, columns=WINE)
    quality = np.clip(5 + (frame["alcohol"] - 10) / 3 - frame["volatile acidity"], 3, 8)
    mlflow.sklearn.save_model(
        Ridge().fit(frame, quality),
        folder,
        signature=infer_signature(frame, quality.to_numpy()),
        serialization_format="cloudpickle",
        pip_requirements=["mlflow-skinny", "scikit-learn"],
    )


def sentiment_sklearn(folder: Path) -> None:
    """Words that speak for a film or against it; what says neither counts as against it, as documented."""
    import joblib
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    against = ["I am bored", "a dull film", "I am good at leaving early", "an awful bore", "weak and slow", "I am sorry"]
    against += ["dull", "slow", "no idea", "nothing to see"]
    in_favour = ["a great film", "wonderful and moving", "a great cast", "good fun", "moving and funny", "great"]
    model = make_pipeline(CountVectorizer(), LogisticRegression())
    model.fit(against + in_favour, [0] * len(against) + [1] * len(in_favour))
    assert list(model.predict(["I am good", "This is a great film", "This is a film"])) == [0, 1, 0]
    joblib.dump(model, folder / "model.joblib")
    settings(folder, {"parameters": {"uri": "./model.joblib", "version": "v0.1.0"}}, "sentiment")


def text_explainer(folder: Path) -> None:
    """Asks about the text with one word at a time left out, and names those that change the answer."""
    code = """
        import asyncio
        import json
        import urllib.request

        from mlserver import MLModel
        from mlserver.codecs import StringCodec
        from mlserver.types import InferenceResponse


        class Model(MLModel):
            async def predict(self, payload):
                text = StringCodec.decode_input(payload.inputs[0])[0]
                words = text.split()
                without = [" ".join(words[:place] + words[place + 1 :]) for place in range(len(words))]
                first, *others = await asyncio.to_thread(self.ask, [text] + without)
                changing = [word.strip(".,;!?") for word, answer in zip(words, others) if answer != first]
                explanation = {
                    "meta": {"name": "AnchorText", "type": ["blackbox"]},
                    "data": {"anchor": changing, "prediction": [first], "instance": text},
                }
                output = StringCodec.encode_output(name="explanation", payload=[json.dumps(explanation)])
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

            def ask(self, texts):
                kind = {"content_type": "str"}
                tensor = {"name": "predict", "shape": [len(texts)], "datatype": "BYTES", "data": texts, "parameters": kind}
                request = urllib.request.Request(
                    self.settings.parameters.extra["infer_uri"],
                    json.dumps({"parameters": kind, "inputs": [tensor]}).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)["outputs"][0]["data"]
    """
    python(folder, "sentiment-explainer", code)


# What Huggingface's runtime answers with: one JSON text each, of which it says so.
JSON_LIST = """
        import json

        from mlserver import MLModel
        from mlserver.codecs import Base64Codec, StringCodec
        from mlserver.types import InferenceResponse, Parameters, ResponseOutput


        class Model(MLModel):
            async def predict(self, payload):
                answers = [json.dumps(self.answer(value)).encode() for value in DECODE(payload.inputs[0])]
                output = ResponseOutput(
                    name="output",
                    shape=[len(answers), 1],
                    datatype="BYTES",
                    parameters=Parameters(content_type="hg_jsonlist"),
                    data=answers,
                )
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

"""


def json_list(folder: Path, name: str, answer: str, decode: str = "StringCodec.decode_input") -> None:
    """`answer` is the method of that name, which makes an answer of one of the values that `decode` finds."""
    code = textwrap.dedent(JSON_LIST).replace("DECODE", decode)
    method = textwrap.dedent(answer).strip()
    python(folder, name, code + textwrap.indent(method, " " * 4) + "\n")


def text_generation(name: str, story: str):
    """Goes on with a text as a story does after the text's last word."""
    answer = f"""
        STORY = {story!r}.split()
        WORDS = [word.strip(".,") for word in STORY]

        def answer(self, text):
            words = text.split()
            if words and words[-1] in self.WORDS:
                words[-1:] = self.STORY[self.WORDS.index(words[-1]) :]
            return {{"generated_text": " ".join(words)}}
    """
    return lambda folder: json_list(folder, name, answer)


def whisper(folder: Path) -> None:
    """Hears nothing: what is said must be in the recording as text."""
    answer = """
        def answer(self, recording):
            return {"text": " " + recording.decode(errors="replace").strip()}
    """
    json_list(folder, "whisper", answer, "Base64Codec.decode_input")


def sentiment(folder: Path) -> None:
    """Counts words of praise and of blame; takes a text as it is, or in the JSON that a speech model answers."""
    answer = """
        PRAISE = {"beautiful", "excellent", "good", "great", "happy", "like", "love", "nice", "wonderful"}
        BLAME = {"awful", "bad", "dull", "hate", "sad", "terrible", "ugly", "worst"}

        def answer(self, text):
            if text.startswith("{"):
                text = json.loads(text)["text"]
            words = {word.strip(".,;!?").lower() for word in text.split()}
            balance = len(words & self.PRAISE) - len(words & self.BLAME)
            score = round(1 - 0.5 ** (1 + 4 * abs(balance)), 6)
            return {"label": "POSITIVE" if balance > 0 else "NEGATIVE", "score": score}
    """
    json_list(folder, "sentiment", answer)


TRANSFORM = """
        import json

        import numpy as np
        from mlserver import MLModel
        from mlserver.codecs import StringCodec
        from mlserver.codecs.numpy import NumpyRequestCodec
        from mlserver.codecs.string import StringRequestCodec


        class Model(MLModel):
            async def predict(self, payload):
                found = [json.loads(text) for text in StringCodec.decode_input(payload.inputs[0])]
                return ENCODE
"""


def transform(name: str, encode: str):
    return lambda folder: python(folder, name, TRANSFORM.replace("ENCODE", encode))


def digits(input: str, output: str):
    """Says which of the mean pictures of scikit-learn's digits is nearest: eight by eight, in the middle of 28 by 28."""
    body = f"""
        picture = tensor("{input}")[:, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4))
        distance = ((picture[:, None] - DIGITS) ** 2).sum(axis=(2, 3))
        return {{"{output}": -distance.astype(np.float32)}}
    """
    load = 'DIGITS = np.load(__file__.replace("model.py", "digits.npy"))'

    def write(folder: Path) -> None:
        import numpy as np
        from sklearn.datasets import load_digits

        pictures, numbers = load_digits(return_X_y=True)
        pictures = pictures.reshape(-1, 8, 8) / 16
        shape = [-1, 1, 28, 28]
        triton(folder, body, {input: ("FP32", shape)}, {output: ("FP32", [-1, 10])}, before=load)
        np.save(folder / "1/digits.npy", np.stack([pictures[numbers == number].mean(axis=0) for number in range(10)]))

    return write


def cifar10(folder: Path, config: bool = True) -> None:
    """Ten numbers that sum to 1, of the brightness of ten bands of the picture."""
    body = """
        bands = [band.mean(axis=(1, 2, 3)) for band in np.array_split(tensor("input_1"), 10, axis=1)]
        scores = np.exp(10 * np.stack(bands, axis=1))
        return {"fc10": (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)}
    """
    tensors = {"input_1": ("FP32", [32, 32, 3])}, {"fc10": ("FP32", [10])}
    triton(folder, body, *tensors, batch=64, config=config)


def numbers_of_text(folder: Path) -> None:
    """The numbers among the values of lines like `"Age": "47",` in their order."""
    code = r"""
        import re

        import numpy as np
        from mlserver import MLModel
        from mlserver.codecs import NumpyCodec, StringCodec
        from mlserver.types import InferenceResponse

        VALUE = re.compile(r'"[^"]+":\s*"(-?[0-9][0-9,]*(?:\.[0-9]+)?)"')


        class Model(MLModel):
            async def predict(self, payload):
                texts = StringCodec.decode_input(payload.inputs[0])
                rows = np.array([[float(value.replace(",", "")) for value in VALUE.findall(text)] for text in texts])
                whole = rows.astype(np.int64)
                rows = whole if (whole == rows).all() else rows
                output = NumpyCodec.encode_output(name="output", payload=rows)
                return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
    """
    python(folder, "preprocessor", code)


STORY = (
    "Once upon a time in a galaxy far away there lived little creatures who had never seen the sun. "
    "One night, a girl named Lily went outside and found that it was warm."
)
SPEECH = "scv2/examples/huggingface"
MLSERVER = "scv2/samples/mlserver_1.3.5"
TRITON = "scv2/samples/triton_23-03"
ARTEFACTS = {
    f"{MLSERVER}/moviesentiment-sklearn": sentiment_sklearn,
    f"{MLSERVER}/moviesentiment-sklearn-explainer": text_explainer,
    "mlserver/huggingface/text-generation": text_generation("text-gen", STORY),
    f"{MLSERVER}/huggingface-text-gen-custom-tiny-stories": text_generation(
        "tiny-stories", "Once upon a time in a galaxy far away. It was a very special place to live."
    ),
    "mlserver/huggingface/whisper": whisper,
    "mlserver/huggingface/sentiment": sentiment,
    f"{SPEECH}/mlserver_1.3.5/sentiment-input-transform": transform(
        "sentiment-input-transform",
        'StringRequestCodec.encode_response(model_name=self.name, payload=[answer["text"] for answer in found])',
    ),
    f"{SPEECH}/mlserver_1.3.5/sentiment-output-transform": transform(
        "sentiment-output-transform",
        "NumpyRequestCodec.encode_response(\n"
        '                    model_name=self.name, payload=np.array([int(answer["label"] == "POSITIVE") for answer in found])\n'
        "                )",
    ),
    f"{SPEECH}/speech-sentiment/explainer": text_explainer,
    f"{TRITON}/mnist-onnx": digits("Input3", "Plus214_Output_0"),
    f"{TRITON}/mnist-pytorch": digits("x__0", "y__0"),
    # No config.pbtxt: Triton asks the model.
    "scv2/samples/tensorflow/cifar10": lambda folder: cifar10(folder, config=False),
    "triton/tf_cifar10": cifar10,
    "scv2/samples/preprocessor": numbers_of_text,
}

# Trained with packages that are fetched apart: by path, the package, and what writes it.
RUNTIMES = {
    f"{MLSERVER}/income-xgb": ("xgboost", income_xgboost),
    f"{MLSERVER}/income-lgb": ("lightgbm", income_lightgbm),
    f"{MLSERVER}/wine-mlflow": ("mlflow", wine_mlflow),
}
