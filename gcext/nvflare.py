"""NVFlare: filters that compress clients' weight differences, and decompress them at the server.

``Compress`` goes last into the clients' ``task_result_filters``, ``Decompress`` first into the
server's. What travels is one packet's bytes in the DXO, whose kind and meta stay. Needs the package
``nvflare`` (``pip install 'gcext[nvflare]'``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcext._codecs.seeds import derive
from gcext._links.sender import Sender
from gcext._packet.packet import Packet
from gcext._recipes import Recipe, fit
from gcext._recipes import recipe as make_recipe
from gcext._spec import plain

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.fl_constant import FLContextKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
except ModuleNotFoundError as error:
    raise ImportError(
        "gcext.nvflare: nvflare must be installed, found none. "
        "`pip install 'gcext[nvflare]'` installs it."
    ) from error

__all__ = ["Compress", "Decompress"]

_NEEDS = (
    "an aggregator of its own",
    "the tensors' shapes",
    "a server's average of models",
    "the steps of the model",
)

_PACKET = "gcext"  # the packet's key in a DXO's data
_MEMBERS = "gcext_members"  # in its meta: name, dtype and library of each tensor in the packet
_ALGORITHM = "gcext"  # as MetaKey.PROCESSED_ALGORITHM
_LEAST_CHECKED = 1 << 31  # elements


class Compress(DXOFilter):  # type: ignore[misc, unused-ignore]
    """Replaces a client's weight differences by one packet: the last of its task result filters.

    Arrays and tensors of float dtypes are compressed by the recipe's up link, each with a residual
    by its name; all else in the data travels as it is. Residuals are kept in memory by job and
    client, from task to task of one process.

    NVFlare does not report to a filter whether the server has used a result; it sends one until it
    has arrived, or its task is over. So a packet counts (its residual is committed) when the client
    is given another task, and is taken back when the same task is given again, as after an error.
    Where the server was past a task when the result came, what that packet held is lost, as without
    gcext.

    Args:
        recipe: a recipe or its spec, such as ``stc:p=0.01``. Its up link alone is used; the server
            takes what aggregator its job names, so one of the recipe's own is refused.
        exact_below: arrays of fewer elements travel as float32, without loss.
        seed: of stochastic codecs; each client's is derived from it, the job and the client's name.

    Attributes:
        sent_bytes: length of all packets.

    >>> import numpy as np
    >>> from gcext.nvflare import Compress, Decompress
    >>> from nvflare.apis.dxo import DXO, from_shareable
    >>> from nvflare.apis.fl_context import FLContext
    >>> result = DXO("WEIGHT_DIFF", {"fc": np.array([0, 4, -2], np.float32)}).to_shareable()
    >>> result = Compress("stc:p=0.7").process(result, FLContext())
    >>> type(from_shareable(result).data["gcext"])
    <class 'bytes'>
    >>> from_shareable(Decompress().process(result, FLContext())).data
    {'fc': array([ 0.,  3., -3.], dtype=float32)}
    """

    def __init__(self, recipe: str | Recipe, exact_below: int = 0, seed: int = 0) -> None:
        super().__init__([DataKind.WEIGHT_DIFF], [DataKind.WEIGHT_DIFF])
        self.recipe = make_recipe(recipe)
        why = "NVFlare aggregates. Use a codec's recipe, such as stc:p=0.01 or sign:feedback=true"
        fit.refuse("Compress", self.recipe, recipe, dict.fromkeys(_NEEDS, why))
        self.seed = plain("Compress", "seed", int, seed)
        self.exact_below = plain("Compress", "exact_below", int, exact_below)
        self.sent_bytes = 0
        self._senders: dict[tuple[str, str], Sender] = {}
        self._tasks: dict[tuple[str, str], str] = {}  # whose packet is pending
        self._sender(("", ""))  # refuses now what a sender does not take
        self._senders.clear()

    def _sender(self, key: tuple[str, str]) -> Sender:
        if key not in self._senders:
            sender = self.recipe.up.sender(derive(self.seed, *key))
            sender.exact_below = self.exact_below
            self._senders[key] = sender
        return self._senders[key]

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """Return the DXO with the packet; see DXOFilter. Nothing has changed where it raises.

        Raises ValueError for NaN or Inf, for what another filter has encoded already, and what else
        ``Sender.compress`` raises. NVFlare then sends the error in place of the result.
        """
        done = dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)
        if done is not None:
            raise ValueError(
                f"Compress: a DXO must be as it was trained, got one of {done!r:.100}."
            )
        key = (str(fl_ctx.get_job_id()), str(fl_ctx.get_identity_name()))
        task = str(fl_ctx.get_prop(FLContextKey.TASK_ID))
        named = {name: _tensor(value) for name, value in dxo.data.items() if _is_float(value)}
        if not named:
            return dxo
        sender = self._sender(key)
        if sender.pending:
            if self._tasks[key] == task:
                sender.rollback()
            else:
                sender.commit()
        number = shareable.get_header("current_round", dxo.get_meta_prop(MetaKey.CURRENT_ROUND))
        if isinstance(number, int):
            sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, number + 1)
        message = sender.compress(named, commit=False).to_bytes()
        self._tasks[key] = task
        self.sent_bytes += len(message)
        members = [
            [name, str(tensor.dtype)[6:], type(dxo.data[name]).__module__.partition(".")[0]]
            for name, tensor in named.items()
        ]
        rest = {name: value for name, value in dxo.data.items() if name not in named}
        dxo.data = {**rest, _PACKET: message}
        dxo.meta = {**dxo.meta, MetaKey.PROCESSED_ALGORITHM: _ALGORITHM, _MEMBERS: members}
        return dxo


class Decompress(DXOFilter):  # type: ignore[misc, unused-ignore]
    """Puts the weight differences back that ``Compress`` has sent: the first of the server's.

    Each array or tensor has its name, shape, dtype and library (NumPy or torch) again. A DXO
    without a packet passes as it is, so that clients without the filter may take part.

    Args:
        shapes: of all that a client's packet must hold, by name and in its order; a message with
            others is refused before anything is allocated. None: any of up to 2^31 elements.

    Attributes:
        received_bytes: length of all packets.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__([DataKind.WEIGHT_DIFF], [DataKind.WEIGHT_DIFF])
        self.shapes = None if shapes is None else {n: tuple(s) for n, s in shapes.items()}
        self.received_bytes = 0

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        """Return the DXO as the client had it, but for what the codec lost; see DXOFilter.

        Raises DecodeError for bytes that are no packet, or of other shapes than these; ValueError
        for meta that does not belong to the packet. NVFlare then drops the result.
        """
        if dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) != _ALGORITHM:
            return dxo
        members, message = dxo.get_meta_prop(_MEMBERS), dxo.data.get(_PACKET)
        expect = None if self.shapes is None else list(self.shapes.values())
        packet = Packet.from_bytes(message, expect=expect)
        names = [member[0] for member in members or []]
        elements = sum(math.prod(member.shape) for member in packet.members)
        known = self.shapes is None or names == list(self.shapes)
        misfit = not packet.members or len(names) != len(packet.members) or not known
        if misfit or elements > _LEAST_CHECKED:
            raise ValueError(
                f"Decompress: a packet must hold the tensors that its DXO names, got {packet} and "
                f"the names {names!r:.200}."
            )
        dense = packet.to_dense()
        data = {name: value for name, value in dxo.data.items() if name != _PACKET}
        for (name, dtype, library), tensor in zip(members, dense, strict=True):
            data[name] = _restored(tensor, dtype, library)
        mine = (MetaKey.PROCESSED_ALGORITHM, _MEMBERS)
        dxo.data, dxo.meta = data, {key: each for key, each in dxo.meta.items() if key not in mine}
        self.received_bytes += len(message)
        return dxo


def _is_float(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.dtype.itemsize <= 8


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _restored(tensor: Tensor, dtype: str, library: str) -> Any:
    """Return a decoded tensor as what it was: dtype such as float32, library numpy or torch."""
    kinds = ("float16", "bfloat16", "float32", "float64")
    if dtype not in kinds or library not in ("numpy", "torch"):
        raise ValueError(
            f"Decompress: a tensor must be of a float dtype of NumPy or torch, got {dtype!r:.50} "
            f"of {library!r:.50}."
        )
    made = tensor.to(getattr(torch, dtype))
    return made if library == "torch" else made.numpy()
