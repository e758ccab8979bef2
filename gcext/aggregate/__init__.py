"""What the receiver makes of m packets: a sum, a mean, a vote, or the projection of conflicts.

Nothing is decompressed: packets are combined, and multiplied with each other, as they are. An
`Aggregator` is what stands at the receiving end of a link; a `Round` feeds it packets one by one.
"""

from gcext.aggregate._aggregator import Aggregator, Mean
from gcext.aggregate._projection import Projection
from gcext.aggregate._robust import MaxK, Median, NormBound, TrimmedMean
from gcext.aggregate._round import Round
from gcext.aggregate._sums import combine, gram, mean
from gcext.aggregate._vote import Vote

__all__ = [
    "Aggregator",
    "MaxK",
    "Mean",
    "Median",
    "NormBound",
    "Projection",
    "Round",
    "TrimmedMean",
    "Vote",
    "combine",
    "gram",
    "mean",
]
