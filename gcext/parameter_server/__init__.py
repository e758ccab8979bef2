"""A parameter server on ``torch.distributed``: push and pull, compressed at both ends.

Workers push gradients and pull what the servers make of them, round by round. Each server keeps the
receiver and the down link of a recipe, each worker its up link. As in BytePS (Jiang et al. 2020,
OSDI) the first layers go first, large tensors are split, small ones share a message.
"""

from gcext.parameter_server._ends import Parcel, Piece, plan_round
from gcext.parameter_server._server import Server
from gcext.parameter_server._worker import Worker

__all__ = ["Parcel", "Piece", "Server", "Worker", "plan_round"]
