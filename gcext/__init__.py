"""gcext: gradient compression for PyTorch at the speed of memory.

packet = gcext.stc(tensor, p=0.01, residual=residual)      # exact top-k, ternary, error feedback
message = packet.to_bytes()                                # real bytes, checksummed
update = gcext.Packet.from_bytes(message, expect=tensor.shape).to_dense()
"""

from gcext import aggregate, polar
from gcext._codecs.registry import Codec, codec, codecs, stc
from gcext._errors import DecodeError
from gcext._links import Diagnostics, ErrorFeedback, Link
from gcext._native.library import build_info
from gcext._packet.packet import Packet
from gcext._recipes import Recipe, Schedule, recipe, recipes
from gcext.aggregate import combine, gram
from gcext.aggregate._history import History

__version__ = "0.1.0"

__all__ = [
    "Codec",
    "DecodeError",
    "Diagnostics",
    "ErrorFeedback",
    "History",
    "Link",
    "Packet",
    "Recipe",
    "Schedule",
    "aggregate",
    "build_info",
    "codec",
    "codecs",
    "combine",
    "gram",
    "polar",
    "recipe",
    "recipes",
    "stc",
]
