"""A safetensors file laid out in memory, each tensor copied once, from wherever it is, to the place it has in the file.

What comes out is both the frozen picture of the tensors, which no later step changes, and the bytes to be written. It is to the byte what
safetensors itself makes (which copies three times on its way): 8 bytes for the size of the header, the header as JSON, padded with spaces to
8 bytes, and the tensors without gaps, the widest types first and each type by name (github.com/huggingface/safetensors, "Format").
"""

import json
from collections.abc import Mapping

import torch

# In the order that safetensors sorts by: the last stand first in the file, so that each begins at a multiple of its width.
TYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
WIDTH = {dtype: place for place, dtype in enumerate(TYPES)}
ALIGNED = 8


def lay_out(tensors: Mapping[str, torch.Tensor]) -> memoryview:
    """name -> tensor on any device, as the bytes of the file."""
    said, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-WIDTH[tensors[name].dtype], name)):
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        said[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    header += b" " * (-len(header) % ALIGNED)
    before = len(header).to_bytes(ALIGNED, "little") + header
    file = torch.empty(len(before) + end, dtype=torch.uint8)
    file[: len(before)] = torch.frombuffer(bytearray(before), dtype=torch.uint8)
    for name, one in said.items():
        begin, end = one["data_offsets"]
        place = file[len(before) + begin : len(before) + end].view(tensors[name].dtype).view(tensors[name].shape)
        place.copy_(tensors[name].detach())
    return memoryview(file.numpy())
