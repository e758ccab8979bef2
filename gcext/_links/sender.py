"""The sending end of a link: named tensors to packets, through the link's stages."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, TypeAlias, overload

from torch import Tensor

from gcext._codecs.base import Codec, Scope
from gcext._codecs.registry import codec as make_codec
from gcext._codecs.topk import Dense
from gcext._links.chain import Stages
from gcext._links.named import Named, named_tensors
from gcext._links.seeds import PacketSeeds
from gcext._links.stages import Stage
from gcext._native.library import capturing, release_memory
from gcext._packet.packet import Packet
from gcext._packet.state import Lock, loading
from gcext._spec import plain

__all__ = ["Named", "Sender"]

_Slot: TypeAlias = Any  # what a sender keeps of a name; None: the packet leaves no residual


class Sender:
    """The sending end of a link: named tensors to packets.

    A packet counts once it is committed. Across a network, ``compress(..., commit=False)`` holds
    the next state back until the other end acknowledged (``commit``) or did not (``rollback``).

    Args:
        codec: a codec, or its spec.
        seed: any integer that no other sender has, of a stochastic codec. Every packet's own is
            derived from it, the name and how many of that name were committed, which state_dict
            keeps.
        exact_below: tensors of fewer elements are sent as float32, without loss.
        scope: what a codec selects from where ``compress`` is given many tensors: "tensor", each
            one for itself, or "model", all of them together (stc and topk, on the CPU).
        stages: what is done to a tensor before the codec, in order; see gcext.Stage. New ones, of
            no other sender.
    """

    def __init__(
        self,
        codec: Codec | str,
        seed: int | None = None,
        *,
        exact_below: int = 0,
        scope: Scope = "tensor",
        stages: Sequence[Stage] = (),
    ) -> None:
        owner = type(self).__name__
        self.codec = codec if isinstance(codec, Codec) else make_codec(codec)
        self.exact_below = plain(owner, "exact_below", int, exact_below)
        if self.exact_below < 0:
            raise ValueError(f"{owner}: exact_below must be at least 0, got {exact_below}.")
        if scope not in self.codec.scopes:
            raise self.codec.scope_error(scope)
        self.exact_vectors_below = 0
        """As ``exact_below``, of tensors of one dimension or none: biases, norms. The larger one
        of the two counts."""
        self.scope = scope
        self.stages = Stages(stages)
        self.skipped: tuple[str, ...] = ()
        """Names that the last ``compress`` of a mapping left out: they had no gradient."""
        self._seeds = PacketSeeds(owner, self.codec, seed)
        self._pending: dict[str, _Slot] = {}
        self._busy: dict[str, int] = {}  # the thread that compresses a name now
        self._lock = Lock()  # of what counts: not held while a codec encodes
        weakref.finalize(self, release_memory).atexit = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.codec.spec!r}, {len(self._pending)} pending)"

    @property
    def pending(self) -> tuple[str, ...]:
        """Names compressed with ``commit=False`` and neither committed nor rolled back yet."""
        return tuple(self._pending)

    @overload
    def compress(self, tensor: Tensor, name: str, commit: bool = True) -> Packet: ...
    @overload
    def compress(self, tensor: Named, *, commit: bool = True) -> Packet: ...
    def compress(
        self, tensor: Tensor | Named, name: str | None = None, commit: bool = True
    ) -> Packet:
        """Return the packet of one tensor, or the group packet of a whole model.

        With feedback the stored residual of each name is added first.

        Args:
            tensor: one tensor, sent as it is; or ``{name: tensor}``, also as pairs, such as a
                module's ``named_parameters()``. There a parameter stands for its gradient. Where
                that is None the name is left out of the packet: a warning lists these names when
                they change, and ``skipped`` lists them. All are to be on one device.
            name: of the one tensor: what its residual is kept by.
            commit: False holds the next state back until ``commit`` or ``rollback``.

        The group's members have the order of the mapping. It is all or nothing: where one tensor is
        refused, no residual and no seed moves on. On CUDA too, where the error is raised when the
        packet is first read; that costs one more pass over the residuals.

        Raises:
            ValueError: NaN or Inf in a tensor or in a sum (names the first index), a shape or
                device other than the residual's, or no tensor at all. The residual stays as it was.
                On CUDA what is not finite is raised when the packet is first read; the
                residual is as it was, and the next call goes on from there.
            TypeError: neither a tensor with its name nor a mapping of names to tensors.
            MemoryError: no memory for the work. The residuals stay as they were.
            RuntimeError: a name is pending; or a CUDA graph is being captured whose replays would
                not do what further calls do.

        >>> import gcext, torch
        >>> model = torch.nn.Linear(3, 2)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> comp = gcext.ErrorFeedback("stc:p=0.5", exact_below=4)
        >>> packet = comp.compress(model.named_parameters(), commit=False)
        >>> [member.method for member in packet.members]
        ['ternary', 'dense']
        >>> comp.commit()
        """
        owner = type(self).__name__
        if not isinstance(tensor, Tensor):
            if name is not None:
                raise TypeError(
                    f"{owner}.compress: with a name, tensor must be a torch.Tensor, "
                    f"got {type(tensor).__name__}. Convert it with torch.as_tensor."
                )
            return self._compress_all(self._tensors(tensor), commit)
        if not isinstance(name, str):
            raise TypeError(
                f"{owner}.compress: the name of a tensor must be a str, "
                f"got {type(name).__name__}. Pass the parameter's name."
            )
        self._refuse_capture((tensor,), commit)
        try:
            self._begin((name,))
            if self.stages:
                packet, slot = self._staged(tensor, name)
            else:
                packet, slot = self._encode_one(tensor, name)
            self._count({name: slot}, commit)
        finally:
            self._end((name,))
        return packet

    def _encode_one(self, tensor: Tensor, name: str) -> tuple[Packet, _Slot]:
        """Return the packet, and the residual that counts once it is committed."""
        if self._is_exact(tensor):
            self._check_shape(tensor, name)
            return _EXACT.encode(tensor), None
        return self._encode(tensor, name, self._seeds.next(name))

    def _is_exact(self, tensor: Tensor) -> bool:
        """Return whether a tensor is sent as float32."""
        below = self.exact_below
        if tensor.dim() <= 1:
            below = max(below, self.exact_vectors_below)
        return bool(tensor.numel() < below)

    def _staged(self, tensor: Tensor, name: str) -> tuple[Packet, _Slot]:
        """Do as ``_encode_one``, from stage to stage and back."""
        slot = None
        try:
            given = self.stages.before(name, tensor)
            packet, slot = self._encode_one(given, name)
            return self.stages.after(name, packet, tensor), slot
        except BaseException:
            if slot is not None:
                self._release(slot)
            self.stages.rollback((name,))
            raise

    def _compress_all(self, tensors: dict[str, Tensor], commit: bool) -> Packet:
        self._refuse_capture(tensors.values(), commit)
        try:
            self._begin(tensors)
            group, slots = self._encode_group(tensors)
            self._count({name: slots[name] for name in tensors}, commit)
        finally:
            self._end(tensors)
        return group

    def _encode_group(self, tensors: dict[str, Tensor]) -> tuple[Packet, dict[str, _Slot]]:
        """Return the group, and the residuals that count once it is committed."""
        slots: dict[str, _Slot] = {}
        given = tensors
        try:
            if self.stages:
                given = {name: self.stages.before(name, tensor) for name, tensor in tensors.items()}
            packets = self._encode_each(given, slots)
            if self.stages:
                packets = [
                    self.stages.after(name, packet, tensors[name])
                    for name, packet in zip(tensors, packets, strict=True)
                ]
            return Packet.group(packets), slots
        except BaseException:
            for slot in slots.values():
                if slot is not None:
                    self._release(slot)
            self.stages.rollback(tensors)
            raise

    def _encode_each(self, tensors: dict[str, Tensor], slots: dict[str, _Slot]) -> list[Packet]:
        """Return the packets, and put the residuals that count once committed into ``slots``."""
        exact, coded = {}, tensors
        if self.exact_below or self.exact_vectors_below:
            exact = {name: x for name, x in tensors.items() if self._is_exact(x)}
            coded = {name: x for name, x in tensors.items() if name not in exact}
            for name, tensor in exact.items():
                self._check_shape(tensor, name)
        sent = _EXACT.advance_many(list(exact.values()), names=list(exact)) if exact else []
        packets = dict(zip(exact, sent, strict=True))
        slots.update(dict.fromkeys(exact))
        if coded:
            sent, kept = self._encode_all(coded, sent)
            packets.update(zip(coded, sent, strict=True))
            slots.update(kept)
        return [packets[name] for name in tensors] if exact else list(packets.values())

    def observe(self, model: Tensor) -> None:
        """Tell what the model is that the next tensors are computed from: any shape, all of it.

        Only ``gcext.Lazy`` needs it, once a step; the others ignore it.
        """
        self.stages.observe(model)

    def _tensors(self, given: Named) -> dict[str, Tensor]:
        """Return the tensors by name, gradients for parameters; warns of names without one."""
        owner = type(self).__name__
        tensors, skipped = named_tensors(owner, given)
        if skipped and tuple(skipped) != self.skipped:
            names = ", ".join(map(repr, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
            warnings.warn(
                f"{owner}.compress: no gradient for {names}; the packet leaves out {len(skipped)} "
                f"of {len(tensors) + len(skipped)} names.",
                stacklevel=3,
            )
        self.skipped = tuple(skipped)
        return tensors

    def _refuse_capture(self, tensors: Iterable[Tensor], commit: bool) -> None:
        """Raise RuntimeError where a CUDA graph is being captured that would not do as the call."""
        if not capturing() or not any(tensor.is_cuda for tensor in tensors):
            return
        if (reason := self._not_captured(commit)) is not None:
            owner = type(self).__name__
            raise RuntimeError(f"{owner}.compress: must not be captured in a CUDA graph: {reason}.")

    def _not_captured(self, commit: bool) -> str | None:
        """Return why a graph cannot hold ``compress``, and what to do; None where it can."""
        for stage in self.stages:
            if type(stage).commit is not Stage.commit:  # it swaps tensors, at the capture alone
                name = type(stage).__name__
                return f"no replay would move the state of {name} on. Encode outside of it"
        return None

    def _begin(self, names: Collection[str]) -> None:
        """Take names until ``_end``; RuntimeError where one is pending or another thread has it."""
        mine = get_ident()
        with self._lock:
            self._refuse_pending(names)
            for name in names:
                if self._busy.get(name, mine) != mine:
                    raise RuntimeError(
                        f"{type(self).__name__}: one packet of a name at a time, another thread "
                        f"compresses {name!r}. Call from one thread, or give each its own names."
                    )
            self._busy.update(dict.fromkeys(names, mine))

    def _end(self, names: Iterable[str]) -> None:
        """Give back the names that this thread has taken."""
        mine = get_ident()
        with self._lock:
            for name in names:
                if self._busy.get(name) == mine:
                    del self._busy[name]

    def _refuse_pending(self, names: Iterable[str]) -> None:
        for name in names if self._pending else ():
            if name in self._pending:
                raise RuntimeError(
                    f"{type(self).__name__}: one packet of a name at a time, {name!r} is pending. "
                    "Call commit or rollback first."
                )

    def _check_shape(self, tensor: Tensor, name: str) -> None:
        """Raise ValueError for another shape or device than a residual of that name has."""

    def _encode(self, tensor: Tensor, name: str, seed: int | None) -> tuple[Packet, _Slot]:
        """Return the packet, and the residual that counts once it is committed."""
        return self.codec.encode(tensor, seed=seed), None

    def _encode_all(
        self, tensors: Mapping[str, Tensor], exact: Sequence[Packet]
    ) -> tuple[list[Packet], Mapping[str, _Slot]]:
        """Return the packets, and the residuals that count once they are committed.

        exact: the packets of the same call's other tensors; on CUDA their errors count, too.
        """
        packets = self.codec.advance_many(
            list(tensors.values()),
            seeds=self._seeds.next_of(tensors),
            names=list(tensors),
            scope=self.scope,
        )
        return packets, dict.fromkeys(tensors)

    def commit(self, name: str | None = None) -> None:
        """Let the last packet of ``name`` count: it arrived. KeyError where none is pending.

        Without a name: the packets of every pending name, if there are any.
        """
        with self._lock:
            slots = {each: self._pending[each] for each in self._named(name)}
            self._settle(slots)
            for each in slots:
                del self._pending[each]

    def _named(self, name: str | None) -> tuple[str, ...]:
        """Return a name, or without one all that are pending."""
        return self.pending if name is None else (name,)

    def _count(self, slots: dict[str, _Slot], commit: bool) -> None:
        """Let new packets count, or be pending."""
        with self._lock:
            if commit:
                self._settle(slots)
            else:
                self._pending.update(slots)

    def _settle(self, slots: Mapping[str, _Slot]) -> None:
        """Let packets count: their slots become residuals, and their seeds are used."""
        self._commit({name: slot for name, slot in slots.items() if slot is not None})
        self.stages.commit(slots)
        self._seeds.used(slots)

    def rollback(self, name: str | None = None) -> None:
        """Forget the last packet of ``name``: it was lost. KeyError where none is pending.

        Without a name: the packets of every pending name, if there are any.
        """
        with self._lock:
            for each in self._named(name):
                if (slot := self._pending.pop(each)) is not None:
                    self._release(slot)
                self.stages.rollback((each,))

    def _commit(self, slots: Mapping[str, Any]) -> None:
        """Make the slots what is kept of their names."""

    def _release(self, slot: Any) -> None:
        """Take back a slot that is not needed."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that later packets depend on; nothing where that is nothing."""
        with self._lock:
            state: dict[str, Any] = self.stages.state_dict()
            if seeds := self._seeds.state_dict():
                state["seeds"] = seeds
            return state | {"pending": sorted(self._pending)} if state else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit."""
        with self._loading(state, self.state_dict()):
            pending = state.get("pending", [])
            if not isinstance(pending, list) or not all(isinstance(name, str) for name in pending):
                raise ValueError(
                    f"{type(self).__name__}: pending must be a list of names, got "
                    f"{pending!r:.100}. Check the file."
                )
            counts = self._seeds.checked(state.get("seeds", {}))
            self.stages.load(type(self).__name__, state.get("stages", []))
            self._seeds.counts = counts
            self._pending = dict.fromkeys(pending)

    @contextmanager
    def _loading(self, state: Any, keys: Iterable[str] | None = None) -> Iterator[None]:
        """Do as ``loading``, while no other thread compresses; RuntimeError where one does."""
        with self._lock:
            if set(self._busy.values()) - {get_ident()}:
                raise RuntimeError(
                    f"{type(self).__name__}.load_state_dict: no thread may compress meanwhile, got "
                    f"one that compresses {next(iter(self._busy))!r}. Wait for it."
                )
            with loading(type(self).__name__, state, keys):
                yield


_EXACT = Dense()
