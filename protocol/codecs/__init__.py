"""Update codecs: how tensors are made small, and read again chunk by chunk. The one part of the wire that needs torch.

``encode`` on the side that sends, ``decoder`` on the one that receives; docs/reference/codecs.md gives the bytes, and
``protocol.encoded`` checks a file's header without torch.
"""

from protocol.codecs.checking import bad_numbers
from protocol.codecs.decoder import CHUNK_ELEMENTS, Decoder
from protocol.codecs.delta import apply_delta
from protocol.codecs.encoding import LARGEST, encode
from protocol.codecs.pulse import encode_bits
from protocol.codecs.reading import TORCH_DTYPES, BytesReader, MappedReader, Reader, Scratch, TensorReader
from protocol.codecs.registry import decoder
from protocol.codecs.sums import Sum, sum_of
from protocol.codecs.tensor_file import tensor_file

__all__ = [
    "CHUNK_ELEMENTS",
    "LARGEST",
    "TORCH_DTYPES",
    "BytesReader",
    "Decoder",
    "MappedReader",
    "Reader",
    "Scratch",
    "Sum",
    "TensorReader",
    "apply_delta",
    "bad_numbers",
    "decoder",
    "encode",
    "encode_bits",
    "sum_of",
    "tensor_file",
]
