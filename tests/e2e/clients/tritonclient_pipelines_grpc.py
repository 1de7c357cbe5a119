"""Documentation, lines 3106-3114 and 3197-3257: gRPC, against models and pipelines."""

import sys

import numpy as np
import tritonclient.grpc as grpcclient

grpc_triton_client = grpcclient.InferenceServerClient(
    url=sys.argv[1],
    verbose=False,
)

model_name = "iris-pipeline.pipeline"
headers = {"seldon-model": model_name}
inputs = [grpcclient.InferInput("predict", (1, 4), "FP64")]
inputs[0].set_data_from_numpy(np.array([[1, 2, 3, 4]]).astype("float64"))
outputs = [grpcclient.InferRequestedOutput("predict")]
result = grpc_triton_client.infer(model_name, inputs, outputs=outputs, headers=headers)
print("iris-pipeline:", repr(result.as_numpy("predict")))

model_name = "tfsimple1"
headers = {"seldon-model": model_name}
print("model ready:", grpc_triton_client.is_model_ready(model_name, headers=headers))
print(grpc_triton_client.get_model_metadata(model_name, headers=headers))


def infer(model_name):
    headers = {"seldon-model": model_name}
    inputs = [
        grpcclient.InferInput("INPUT0", (1, 16), "INT32"),
        grpcclient.InferInput("INPUT1", (1, 16), "INT32"),
    ]
    inputs[0].set_data_from_numpy(np.arange(1, 17).reshape(-1, 16).astype("int32"))
    inputs[1].set_data_from_numpy(np.arange(1, 17).reshape(-1, 16).astype("int32"))
    outputs = [grpcclient.InferRequestedOutput("OUTPUT0")]
    result = grpc_triton_client.infer(model_name, inputs, outputs=outputs, headers=headers)
    return repr(result.as_numpy("OUTPUT0"))


print("model:", infer("tfsimple1"))
print("pipeline:", infer("tfsimple.pipeline"))
