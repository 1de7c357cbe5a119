"""Documentation, lines 3061-3079."""

import sys

import numpy as np
import tritonclient.http as httpclient

http_triton_client = httpclient.InferenceServerClient(
    url=sys.argv[1],
    verbose=False,
)
print("model ready:", http_triton_client.is_model_ready("iris"))
print("model metadata:", http_triton_client.get_model_metadata("iris"))

binary_data = False
inputs = [httpclient.InferInput("predict", (1, 4), "FP64")]
inputs[0].set_data_from_numpy(np.array([[1, 2, 3, 4]]).astype("float64"), binary_data=binary_data)
outputs = [httpclient.InferRequestedOutput("predict", binary_data=binary_data)]
result = http_triton_client.infer("iris", inputs, outputs=outputs)
print(repr(result.as_numpy("predict")))
