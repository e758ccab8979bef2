"""Federated learning over real packets: ``python -m gcext fl``.

Every transfer is the bytes a packet packs into, and every figure for traffic is their length.  The
training loss that a client reports beside its packet is not counted.

>>> from gcext.fl import Settings, load
>>> from gcext.fl.run import run
>>> plan = Settings("digits", "stc", "stc:p=0.1", clients=10, participation=0.5, rounds=2)
>>> len(run(plan, load("digits"))["rounds"])
2
"""

from gcext.fl.data import load
from gcext.fl.run import Federation, Interrupted
from gcext.fl.settings import Settings
from gcext.fl.workers import Workers

__all__ = ["Federation", "Interrupted", "Settings", "Workers", "load"]
