"""FSDP2 across sites: full sharding inside a site, compressed gradients between the sites.

``fully_shard`` shards a model over the ranks of one site. ``compress`` then has the ranks that hold
the same shard, one of each site, exchange packets of its gradient, with a residual of the shard's
size. ``ReduceScatter`` compresses inside of a site, by a codec that is unbiased and keeps no state.
"""

from gcext.fsdp._across import State, compress
from gcext.fsdp._reduce_scatter import ReduceScatter

__all__ = ["ReduceScatter", "State", "compress"]
