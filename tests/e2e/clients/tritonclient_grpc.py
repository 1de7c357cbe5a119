"""Documentation, lines 3086-3105. This client always sends raw tensors."""

import sys

import numpy as np
import tritonclient.grpc as grpcclient

grpc_triton_client = grpcclient.InferenceServerClient(
    url=sys.argv[1],
    verbose=False,
)
model_name = "iris"
headers = {"seldon-model": model_name}
print("model ready:", grpc_triton_client.is_model_ready(model_name, headers=headers))
print(grpc_triton_client.get_model_metadata(model_name, headers=headers))

inputs = [
    grpcclient.InferInput("predict", (1, 4), "FP64"),
]
inputs[0].set_data_from_numpy(np.array([[1, 2, 3, 4]]).astype("float64"))
outputs = [grpcclient.InferRequestedOutput("predict")]
result = grpc_triton_client.infer(model_name, inputs, outputs=outputs, headers=headers)
print(repr(result.as_numpy("predict")))
