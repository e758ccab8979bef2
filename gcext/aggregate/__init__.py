"""What the receiver makes of m packets: a sum, a mean, a vote, or the projection of conflicts.

Nothing is decompressed: packets are combined, and multiplied with each other, as they are. An
`Aggregator` is the receiving end of a link; a `Round` takes packets one by one for it.
"""

from importlib import import_module
from pkgutil import iter_modules

from gcext.aggregate._aggregator import Aggregator, Mean, RoundInput
from gcext.aggregate._fetchsgd import FetchSGD
from gcext.aggregate._message import Message, MessageError
from gcext.aggregate._outer import HeavyBall, Nesterov, SignStep
from gcext.aggregate._predicted import LastValues, Predicted
from gcext.aggregate._projection import Projection
from gcext.aggregate._registry import aggregator_class, aggregators, register_aggregator
from gcext.aggregate._robust import Median, TrimmedMean, Vote
from gcext.aggregate._round import Round
from gcext.aggregate._rounds import Rounds
from gcext.aggregate._sums import combine, gram, mean, per_tensor
from gcext.aggregate._wrappers import MaxK, Momentum, NormBound

for _module in iter_modules(__path__):
    import_module(f"gcext.aggregate.{_module.name}")  # each registers its aggregators

__all__ = ["Aggregator", "FetchSGD", "HeavyBall", "LastValues", "MaxK", "Mean", "Median"]
__all__ += ["Message", "MessageError"]
__all__ += ["Momentum", "Nesterov", "NormBound", "Predicted", "Projection", "Round", "Rounds"]
__all__ += ["RoundInput", "SignStep", "TrimmedMean", "Vote", "aggregator_class", "aggregators"]
__all__ += ["combine", "gram", "mean", "per_tensor", "register_aggregator"]
