"""Writes iris-input.txt beside this file: 100 requests, one a line, the first as the documentation prints it."""

import json
import random
from pathlib import Path

FIRST = [0.38606369295833043, 0.006894049558299753, 0.6104082981607108, 0.3958954239450676]

random.seed(0)
rows = [FIRST] + [[random.random() for _ in range(4)] for _ in range(99)]
with (Path(__file__).parent / "iris-input.txt").open("w") as out:
    for row in rows:
        tensor = {"name": "predict", "data": row, "datatype": "FP64", "shape": [1, 4]}
        out.write(json.dumps({"inputs": [tensor]}) + "\n")
