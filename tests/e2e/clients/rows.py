"""Documentation, 5106-5138 and 8324-8355: asks with rows of one kind. The data there cannot be had; this is ours.

    rows.py URL RESOURCE income|cifar10 normal|drift|outlier ROWS
"""

import json
import sys

import numpy as np
import urllib3

url, resource_name, data, request_type, batch_size = sys.argv[1:]
batch_size = int(batch_size)
random = np.random.default_rng(0)
if data == "income":
    rows = random.integers(0, [60, 8, 4, 3, 8, 5, 4, 1, 1000, 100, 50, 10], (batch_size, 12)).astype(float)
    if request_type == "drift":
        rows[:, 0] = random.integers(70, 90, batch_size)
    if request_type == "outlier":
        # More money than anyone has, every second time.
        rows[::2, 8] = 10**6
else:
    rows = random.uniform(0.3, 0.7, (batch_size, 32, 32, 3))
    if request_type == "drift":
        rows = rows + 0.25
    if request_type == "outlier":
        rows[::2] = random.integers(0, 2, rows[::2].shape)

request = {"inputs": [{"name": "input_1", "data": rows.flatten().tolist(), "datatype": "FP32", "shape": list(rows.shape)}]}
response = urllib3.request(
    "POST",
    url,
    body=json.dumps(request),
    headers={"Content-Type": "application/json", "seldon-model": resource_name},
)
print(f"<Response [{response.status}]>")
print(json.dumps(json.loads(response.data), separators=(",", ":")))
