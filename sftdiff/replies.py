"""What a sample step writes: one row a reply. Imports no torch, so that the plan knows its version."""

import pyarrow as pa

# Part of the identity of every sample step: raise when the same settings give other replies.
SAMPLE_VERSION = 2
BACKENDS = ("auto", "transformers", "vllm")

REPLY_SCHEMA = pa.schema(
    [
        ("scenario", pa.string()),
        ("sample", pa.int32()),
        ("turn", pa.int32()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("cut", pa.bool_()),
    ]
)
