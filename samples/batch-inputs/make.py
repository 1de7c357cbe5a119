"""Writes iris-input.txt and tfsimple-input.txt beside this file: 100 requests each, one a line, the first as documented."""

import json
import random
from pathlib import Path

IRIS = [0.38606369295833043, 0.006894049558299753, 0.6104082981607108, 0.3958954239450676]
TFSIMPLE = [
    [75, 39, 9, 44, 32, 97, 99, 40, 13, 27, 25, 36, 18, 77, 62, 60],
    [39, 7, 14, 58, 13, 88, 98, 66, 97, 57, 49, 3, 49, 63, 37, 12],
]


def tensor(name: str, data: list, datatype: str) -> dict:
    return {"name": name, "data": data, "datatype": datatype, "shape": [1, len(data)]}


def write(name: str, requests: list) -> None:
    lines = [json.dumps({"inputs": inputs}) + "\n" for inputs in requests]
    (Path(__file__).parent / name).write_text("".join(lines))


random.seed(0)
rows = [IRIS] + [[random.random() for _ in range(4)] for _ in range(99)]
write("iris-input.txt", [[tensor("predict", row, "FP64")] for row in rows])

random.seed(0)
pairs = [TFSIMPLE] + [[[random.randint(0, 99) for _ in range(16)] for _ in range(2)] for _ in range(99)]
write("tfsimple-input.txt", [[tensor(f"INPUT{i}", data, "INT32") for i, data in enumerate(pair)] for pair in pairs])
