"""Asks a model or pipeline by its topics, with the protocol's protobuf: prints the answer's tensors, then the given headers.

    kafka_by_hand.py BROKER INPUTS OUTPUTS TENSOR,… DATATYPE SHAPE DATA [HEADER=VALUE]

All tensors get the same data.
"""

import sys
import uuid

import numpy as np
import tritonclient.grpc as grpcclient
from confluent_kafka import Consumer, Producer, TopicPartition
from tritonclient.grpc import service_pb2

broker, to, back, tensors, datatype, shape, data, *headers = sys.argv[1:]
shape = [int(size) for size in shape.split(",")]
headers = [tuple(header.split("=")) for header in headers]
given = [name for name, _ in headers]
kind = {"FP32": np.float32, "INT32": np.int32}[datatype]
data = np.array([float(number) for number in data.split(",")]).astype(kind).reshape(shape)

key = uuid.uuid4().hex
reader = Consumer({"bootstrap.servers": broker, "group.id": "none", "enable.auto.commit": False})
ends = [TopicPartition(back, number) for number in reader.list_topics(back).topics[back].partitions]
for end in ends:
    end.offset = reader.get_watermark_offsets(end)[1]
reader.assign(ends)

request = service_pb2.ModelInferRequest()
for name in tensors.split(","):
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    field = {"FP32": "fp32_contents", "INT32": "int_contents"}[datatype]
    getattr(tensor.contents, field).extend(data.flatten().tolist())
writer = Producer({"bootstrap.servers": broker})
writer.produce(to, key=key, value=request.SerializeToString(), headers=headers)
writer.flush()

while (record := reader.poll(10)) is not None:
    if record.error():
        sys.exit(f"{record.error()}")
    if record.key() == key.encode():
        break
else:
    sys.exit("no answer")
answer = service_pb2.ModelInferResponse.FromString(record.value())
if not answer.raw_output_contents:
    # So that the client reads either form.
    for tensor in answer.outputs:
        values = tensor.contents.int64_contents if tensor.datatype == "INT64" else tensor.contents.int_contents
        kind = {"INT64": np.int64, "INT32": np.int32}[tensor.datatype]
        answer.raw_output_contents.append(np.array(values, kind).tobytes())
result = grpcclient.InferResult(answer)
for tensor in answer.outputs:
    print(tensor.name, tensor.datatype, list(tensor.shape), result.as_numpy(tensor.name).flatten().tolist())
for name, value in record.headers():
    if name in given:
        print(name, value.decode())
