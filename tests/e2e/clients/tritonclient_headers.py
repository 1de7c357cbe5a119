"""Documentation, lines 6792-6807 (with a header) and 6932-6944 (by path)."""

import sys

import numpy as np
import tritonclient.http as httpclient

client = httpclient.InferenceServerClient(
    url=sys.argv[1],
    verbose=False,
)
inputs = [httpclient.InferInput("predict", (1, 4), "FP64")]
inputs[0].set_data_from_numpy(
    np.array([[1, 2, 3, 4]]).astype("float64"),
    binary_data=False,
)
result = client.infer(
    "iris",
    inputs,
    headers={"Seldon-Model": "iris"},
)
print("result is:", result.as_numpy("predict"))
result = client.infer("iris", inputs)
print("result is:", result.as_numpy("predict"))
