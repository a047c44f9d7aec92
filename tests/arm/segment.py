"""One side of the comparison: `python -m tests.arm.segment MODEL PICTURES.npy OUT.npz` on whatever runtime is there.

PICTURES.npy holds the prepared tensors, Nx1xHxWx3 uint8 RGB. OUT.npz gets `classes`, what the network gave for each,
and `partitions`, the first input and the output of every piece of the graph that XNNPACK took.
"""

import sys

import numpy as np

from models.runtime import interpreter, runtime

model, pictures, out = sys.argv[1:]
opened = interpreter(model)
source, sink = opened.get_input_details()[0]["index"], opened.get_output_details()[0]["index"]
classes = []
for pixels in np.load(pictures):
    opened.set_tensor(source, pixels)
    opened.invoke()
    classes.append(opened.get_tensor(sink)[0])
nodes = [node for node in opened._get_ops_details() if node["op_name"] == "DELEGATE"]
borders = [f"{sorted(map(int, node['inputs']))} -> {sorted(map(int, node['outputs']))}" for node in nodes]
np.savez_compressed(out, classes=np.stack(classes), partitions=np.array(borders, str), runtime=runtime()[0])
