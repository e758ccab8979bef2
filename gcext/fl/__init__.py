"""Federated learning over real packets: ``python -m gcext fl``.

Every transfer is the bytes a packet packs into, and every figure for traffic is their length.  The
training loss that a client reports beside its packet is not counted.

>>> from gcext.fl import Settings, load, run
>>> plan = Settings("digits", "stc", "stc:p=0.1", clients=10, participation=0.5, rounds=2)
>>> len(run(plan, load("digits"))["rounds"])
2
"""

from gcext.checkpoint import CheckpointError
from gcext.fl._client import local_sgd
from gcext.fl._data import DATASETS, Data, Part, load
from gcext.fl._models import FlatModel, build, initial
from gcext.fl._plot import plot
from gcext.fl._run import Diverged, Federation, Interrupted, Record, run
from gcext.fl._settings import DEFAULTS, Settings, complete
from gcext.fl._split import Split, split
from gcext.fl._workers import Workers

__all__ = ["CheckpointError", "DATASETS", "DEFAULTS", "Data", "Diverged", "Federation"]
__all__ += ["FlatModel", "Interrupted", "Part", "Record", "Settings", "Split", "Workers", "build"]
__all__ += ["complete", "initial", "load", "local_sgd", "plot", "run", "split"]
