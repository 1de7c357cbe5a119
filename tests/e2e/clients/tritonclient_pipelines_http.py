"""Documentation, lines 3080-3086 and 3140-3202: REST, against models and pipelines, with and without binary tensors."""

import sys

import numpy as np
import tritonclient.http as httpclient

http_triton_client = httpclient.InferenceServerClient(
    url=sys.argv[1],
    verbose=False,
)

inputs = [httpclient.InferInput("predict", (1, 4), "FP64")]
inputs[0].set_data_from_numpy(np.array([[1, 2, 3, 4]]).astype("float64"), binary_data=False)
outputs = [httpclient.InferRequestedOutput("predict", binary_data=False)]
result = http_triton_client.infer("iris-pipeline.pipeline", inputs, outputs=outputs)
print("iris-pipeline:", repr(result.as_numpy("predict")))

print("model ready:", http_triton_client.is_model_ready("iris"))
print("model metadata:", http_triton_client.get_model_metadata("iris"))


def infer(name, binary_data):
    inputs = [
        httpclient.InferInput("INPUT0", (1, 16), "INT32"),
        httpclient.InferInput("INPUT1", (1, 16), "INT32"),
    ]
    inputs[0].set_data_from_numpy(np.arange(1, 17).reshape(-1, 16).astype("int32"), binary_data=binary_data)
    inputs[1].set_data_from_numpy(np.arange(1, 17).reshape(-1, 16).astype("int32"), binary_data=binary_data)
    outputs = [httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary_data)]
    result = http_triton_client.infer(name, inputs, outputs=outputs)
    return repr(result.as_numpy("OUTPUT0"))


print("model, no binary data:", infer("tfsimple1", False))
print("model, binary data:", infer("tfsimple1", True))
print("pipeline, no binary data:", infer("tfsimple.pipeline", False))
print("pipeline, binary data:", infer("tfsimple.pipeline", True))
