"""Flower: clients' updates as packets, through its Message API (flwr >= 1.40).

A client mod and a strategy; a client's residual counts once the server has aggregated its packet::

    app = ClientApp(mods=[gcext.flower.CompressMod("pstc:p=0.1")])
    strategy = gcext.flower.CompressedFedAvg("pstc:p=0.1")
"""

try:
    import flwr as _flwr  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "gcext.flower: flwr >= 1.40 must be installed, found none. "
        "`pip install 'gcext[flower]'` installs it."
    ) from error

from gcext.flower._loop import simulate
from gcext.flower._mod import CompressMod
from gcext.flower._strategy import Arrived, CompressedFedAvg, ProjectedFedAvg

__all__ = ["Arrived", "CompressMod", "CompressedFedAvg", "ProjectedFedAvg", "simulate"]
