"""The outer optimizer: pseudo-gradients, their exchange, and the step with their mean."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gcext._codecs.seeds import derive
from gcext._packet.errors import DecodeError
from gcext._packet.packet import Packet
from gcext._packet.state import loading
from gcext._recipes import Recipe, fit
from gcext._recipes import recipe as make_recipe
from gcext._spec import plain, positive
from gcext.distributed import all_gather, gather_objects
from gcext.outer._start import (
    check_parameters,
    digest,
    ends,
    pack,
    place,
    try_out,
    unpack,
    wide,
)
from gcext.outer._store import StoreRounds

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store  # type: ignore[attr-defined]

__all__ = ["OuterOptimizer"]


# What a state counts, each a whole number.
_COUNTS = ("round", "local_steps", "sent_bytes", "received_bytes", "left_out")
_UNMET = {
    "the ranks' losses": "ranks exchange none. Use localsgd:codec=stc:p=0.1,feedback=true",
    "a server's average of models": "there is no server. Use localsgd",
}


class _Posted(NamedTuple):
    """A packet that is in the store, of a round that this rank does not know the end of."""

    number: int
    sent: list[Tensor]  # the pseudo-gradient
    mine: bool  # False: an earlier process of this rank has sent another


class OuterOptimizer:
    """Averages compressed pseudo-gradients every H steps, and steps with their mean.

    Call ``step`` after each step of the inner optimizer. Every H-th call takes the pseudo-gradient
    of each parameter (its value after the last outer step minus its value now), compresses it by
    the recipe's up link, exchanges packets, and hands all ranks' to the recipe's aggregator, whose
    result is subtracted from the global parameters; the local ones become these. The aggregator
    holds the outer momentum (gcext.aggregate.Nesterov). All ranks have the same bits afterwards.

    Every parameter that requires a gradient takes part; frozen ones and buffers, such as the
    statistics of batch norm, stay each rank's own, and so does the inner optimizer's state. Global
    parameters are float32 (float64 of float64), also where the model's are of 16 bits. All ranks
    must construct with the same parameters, recipe and options, or ValueError is raised.

    Packets go to all ranks, so the recipe's down link plays no part. Without ``store`` they travel
    by collectives (gcext.distributed.all_gather): all ranks must take part in each round, and where
    one raises, all do. With it, late ranks are left out of a round: see docs/outer-loop.md.

    Args:
        model: its parameters are changed in place.
        recipe: a recipe or its spec: ``localsgd``, ``diloco``, ``sparseloco``, or any other that
            needs no losses.
        every: H, steps from one outer step to the next; None: the recipe's schedule's.
        process_group: of the ranks; None: all processes.
        lr: outer learning rate in place of the recipe's.
        momentum: outer momentum in place of the recipe's, in [0, 1). Where the recipe has no outer
            optimizer, Nesterov's step is added, by default with lr 1 and momentum 0.
        exact_below: parameters of fewer elements travel as float32, without loss.
        seed: of stochastic codecs, the same on all ranks: each rank's is derived from it.
        store: such as a TCPStore that outlives the ranks: packets travel through it.
        rank: of this process, with a store; None: that in the process group.
        world: number of ranks, with a store; None: that of the process group.
        timeout: seconds that a rank waits in the store for others, once it is there.
        keep: rounds that stay in the store, for ranks that come back.
        run: name of the run, where runs share a store.

    Attributes:
        round: outer steps so far.
        local_steps: inner steps since the last one.
        members: ranks that took part in the last round; () before the first.
        sent_bytes: length of all messages that this rank has sent; received_bytes: that it has
            got from others.
        left_out: rounds that this rank had a packet for and was left out of.

    >>> import gcext, torch
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    >>> model = torch.nn.Linear(8, 2)
    >>> inner = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> outer = gcext.OuterOptimizer(model, "sparseloco:p=0.25", every=2)
    >>> for step in range(4):
    ...     inner.zero_grad()
    ...     model(torch.ones(1, 8)).square().sum().backward()
    ...     inner.step()
    ...     outer.step()
    False
    True
    False
    True
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        model: torch.nn.Module,
        recipe: Recipe | str,
        every: int | None = None,
        process_group: ProcessGroup | None = None,
        *,
        lr: float | None = None,
        momentum: float | None = None,
        exact_below: int = 0,
        seed: int = 0,
        store: Store | None = None,
        rank: int | None = None,
        world: int | None = None,
        timeout: float = 60.0,
        keep: int = 8,
        run: str = "run",
    ) -> None:
        self.recipe = make_recipe(recipe)
        schedule = self.recipe.schedule
        every = schedule.local_steps if every is None else every
        self.every = plain("OuterOptimizer", "every", int, every)
        if self.every < 1:
            raise ValueError(
                f"OuterOptimizer: every must be at least 1, got {self.every}. Pass every=30, or a "
                "recipe with a number of steps, such as sparseloco."
            )
        fit.refuse("OuterOptimizer", self.recipe, recipe, _UNMET)
        self._group = process_group
        self.rank, self.world = place(process_group, store, rank, world)
        self._rounds: StoreRounds | None = None
        if store is not None:
            timeout = positive("OuterOptimizer", "timeout", timeout)
            keep = plain("OuterOptimizer", "keep", int, keep)
            if keep < 1:
                raise ValueError(f"OuterOptimizer: keep must be at least 1, got {keep}.")
            self._rounds = StoreRounds(store, run, self.rank, self.world, timeout, keep)
        exact_below = plain("OuterOptimizer", "exact_below", int, exact_below)
        if exact_below < 0:
            raise ValueError(f"OuterOptimizer: exact_below must be at least 0, got {exact_below}.")
        seed = derive(seed, self.rank)
        self._ends = partial(ends, self.recipe.up, lr, momentum, exact_below, seed)
        self._sender, self._receiver = self._ends()
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._names, self._params = list(named), list(named.values())
        check_parameters(named)
        try_out(named, *self._ends())
        self._global = [p.detach().to(wide(p), copy=True).contiguous() for p in self._params]
        self.round = self.local_steps = self.sent_bytes = self.received_bytes = self.left_out = 0
        self.members: tuple[int, ...] = ()
        self._posted: _Posted | None = None
        self._begin_round()
        shared = self.world, None if store is None else keep, schedule
        options = repr((self.recipe.up, self._receiver, self.every, exact_below, shared))
        self._check_start(digest(options, named))

    def __repr__(self) -> str:
        return (
            f"OuterOptimizer({self.recipe.up!r}, every={self.every}, rank {self.rank} of "
            f"{self.world}, {self.round} rounds)"
        )

    def _check_start(self, mine: str) -> None:
        """Raise ValueError unless all ranks began alike; by collectives, on all of them."""
        if self._rounds is not None:
            first = self._rounds.agree(mine)
        else:
            first = mine if len(set(gather_objects(mine, self._group))) == 1 else ""
        if first != mine:
            raise ValueError(
                "OuterOptimizer: parameters, recipe and options must be the same on all ranks, got "
                f"others (rank {self.rank}). Construct with the initial parameters, before any "
                "checkpoint is loaded."
            )

    # --- Steps. ---

    def step(self) -> bool:
        """Count an inner step, and take the outer one if it is due; return whether it was.

        With a store it is True also where this rank was left out: the parameters are then the new
        global ones and, on top, what this rank had changed, which its next packet will hold.

        Raises:
            ValueError: NaN or Inf in a pseudo-gradient; names the parameter. ``reset`` forgets it.
            RuntimeError: by collectives, another rank raised or is in another round. With a store:
                the packets of rounds that this rank has missed are gone, and no rank gave it the
                model.
            DecodeError: a rank sent what is no packet of this model.

        What is raised leaves all as it was before the call, but for rounds that this rank had
        missed and has applied; called again it takes the outer step then. With a store, a packet
        that is there already may count: the next call goes on waiting with it.
        """
        if self.local_steps + 1 < self.every:
            self.local_steps += 1
            return False
        if self._rounds is None:
            self._gathered()
        else:
            self._stored(self._rounds)
        self.local_steps = 0
        return True

    def reset(self) -> None:
        """Forget the local progress: the parameters become the global ones."""
        self._set(self._global)
        if self._posted is not None:  # its packet may count, of what is forgotten now
            self._posted = self._posted._replace(sent=self._progress())

    def _gathered(self) -> None:
        """Take part in a round by collectives."""
        try:
            packet = self._compress(self._progress())
        except Exception:
            with suppress(TypeError):
                all_gather(None, self._group, number=self.round)  # raises here, and on all others
            raise
        try:
            got = all_gather(packet, self._group, number=self.round)
            self._advance(dict(enumerate(got)))
        except BaseException:
            self._sender.rollback()
            raise
        self._sender.commit()
        self._begin_round()
        self.sent_bytes += packet.nbytes
        self.received_bytes += sum(each.nbytes for i, each in enumerate(got) if i != self.rank)

    def _stored(self, rounds: StoreRounds) -> None:
        """Take part in a round by the store."""
        if self._posted is None:
            self._catch_up(rounds)
            number, progress = self.round + 1, self._progress()
            packet = self._compress(progress)
            try:
                mine = rounds.post(number, packet.to_bytes())
            except BaseException:
                self._sender.rollback()
                raise
            self.sent_bytes += packet.nbytes if mine else 0
            self._posted = _Posted(number, progress, mine)
        number, sent, mine = self._posted
        if rounds.decide(number) and mine:
            rest = [now - then for now, then in zip(self._progress(), sent, strict=True)]
            self._sender.commit()
            self._set(self._global, rest)
        else:
            self._sender.rollback()
            self.left_out += 1
            if mine:
                rounds.discard(number)
        self._posted = None
        self._catch_up(rounds)

    def _catch_up(self, rounds: StoreRounds) -> None:
        """Apply the decided rounds that this rank has not, in order; its own progress stays."""
        while (log := rounds.read(self.round)).head > self.round:
            number = self.round + 1
            members = log.of(number) if number >= log.first else ()
            messages = rounds.messages(number, members) if members else None
            if messages is None:
                self._fetch(rounds)
                continue
            packets = {}
            for rank, message in messages.items():
                try:
                    expect = [p.shape for p in self._params]
                    device = self._params[0].device
                    packets[rank] = Packet.from_bytes(message, device, expect)
                except DecodeError as wrong:
                    text = f"OuterOptimizer: round {number}, rank {rank}: {wrong}"
                    raise DecodeError(wrong.code, wrong.field, wrong.offset, text) from wrong
            self._advance(packets, self._progress())
            self._begin_round()
            self.received_bytes += sum(len(m) for r, m in messages.items() if r != self.rank)
            for rank in rounds.asked(members):
                message = pack({"round": self.round, "global": self._global, **self._outer()})
                rounds.answer(rank, message)
                self.sent_bytes += len(message)

    def _fetch(self, rounds: StoreRounds) -> None:
        """Replace the global parameters and the outer momentum by those of another rank."""
        try:
            message = rounds.ask()
        except TimeoutError:
            raise RuntimeError(
                f"OuterOptimizer: rank {self.rank} must be at most {rounds.keep} rounds behind, "
                f"got round {self.round} of {rounds.read().head}, and no other rank gave it the "
                "model. Resume all ranks from one checkpoint, or raise keep."
            ) from None
        state = unpack(message, "cpu")
        _, receiver = self._ends()
        receiver.load_state_dict(state["receiver"])
        progress = self._progress()
        self._receiver, self.round, self._global = receiver, state["round"], state["global"]
        self._global = [g.to(p.device) for g, p in zip(self._global, self._params, strict=True)]
        self._set(self._global, progress)
        self.received_bytes += len(message)
        self._begin_round()

    def _compress(self, progress: Sequence[Tensor]) -> Packet:
        named = dict(zip(self._names, progress, strict=True))
        try:
            packet = self._sender.compress(named, commit=False)
        except ValueError as error:
            text = f"{error} OuterOptimizer.reset() sets the parameters to the global ones."
            raise ValueError(text) from error
        try:
            packet.to_bytes()  # where an error on a CUDA device is raised
        except BaseException:
            self._sender.rollback()
            raise
        return packet

    def _progress(self) -> list[Tensor]:
        """Return what each parameter had after the last outer step minus what it has now."""
        made = []
        for g, p in zip(self._global, self._params, strict=True):
            made.append(g.to(p.dtype).to(g) - p.detach().to(g.dtype))
        return made

    def _advance(self, packets: Mapping[int, Packet], progress: Sequence[Tensor] = ()) -> None:
        """Take the outer step of a round's packets; the parameters keep ``progress``."""
        before = self._receiver.snapshot()
        try:
            made = self._receiver.aggregate(packets, round=self.round + 1)
            parts = [made] if isinstance(made, Tensor) else made
            new = [g - u.view(g.shape) for g, u in zip(self._global, parts, strict=True)]
            self._set(new, progress)
        except BaseException:
            self._receiver.restore(before)
            raise
        self._global = new
        self.round += 1
        self.members = tuple(sorted(packets))

    def _set(self, values: Sequence[Tensor], progress: Sequence[Tensor] = ()) -> None:
        """Set the parameters: to ``values``, or to what is left of them after ``progress``."""
        if progress:
            # From the rounded values, which the next progress is counted from.
            rounded = (v.to(p.dtype).to(v) for v, p in zip(values, self._params, strict=True))
            values = [v - rest for v, rest in zip(rounded, progress, strict=True)]
        with torch.no_grad():
            for p, value in zip(self._params, values, strict=True):
                p.copy_(value)

    def _begin_round(self) -> None:
        """Set the next round's codec; the lazy stages learn the model."""
        self._sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, self.round + 1)
        if any(stage.lazy for stage in self._sender.stages):
            self._sender.observe(torch.cat([g.reshape(-1).float() for g in self._global]))

    # --- State. ---

    def _outer(self) -> dict[str, Any]:
        return {"receiver": self._receiver.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Return global parameters, residuals, outer momentum and counters, under this rank's name.

        The keys of no two ranks are equal, as ``torch.distributed.checkpoint`` needs it. Save the
        model and the inner optimizer beside it, also under a rank's own key: between outer steps
        they differ. RuntimeError where a call of ``step`` raised while its packet was in the store.
        """
        if self._posted is not None:
            raise RuntimeError(
                f"OuterOptimizer: round {self._posted.number} must be decided before its state is "
                "taken. Call step again."
            )
        return {
            f"rank{self.rank}": {
                "world": self.world,
                "round": self.round,
                "local_steps": self.local_steps,
                "sent_bytes": self.sent_bytes,
                "received_bytes": self.received_bytes,
                "left_out": self.left_out,
                "members": list(self.members),
                "global": {n: g.clone() for n, g in zip(self._names, self._global, strict=True)},
                # As bytes: what there is of it grows, and a checkpoint is read into what is there.
                "memory": pack({"sender": self._sender.state_dict(), **self._outer()}),
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; ValueError, and nothing changed, for one that does not fit.

        The parameters of the model are not touched: load them as they were saved. With a store that
        is new, too, all ranks must load before one of them takes an outer step.
        """
        with loading("OuterOptimizer", state):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        mine = state.get(f"rank{self.rank}")
        if not isinstance(mine, Mapping) or mine.get("world") != self.world:
            raise ValueError(
                f"OuterOptimizer: a state must be of rank {self.rank} of {self.world}, got "
                f"{sorted(map(str, state))}. Start as many ranks as had saved it."
            )
        shapes = {n: tuple(p.shape) for n, p in zip(self._names, self._params, strict=True)}
        found = {n: tuple(g.shape) for n, g in mine["global"].items()}
        if shapes != found:
            odd = sorted(n for n in shapes | found if shapes.get(n) != found.get(n))
            raise ValueError(
                "OuterOptimizer: a state must have the model's parameters, got "
                f"others of {', '.join(odd[:5])}."
            )
        memory = unpack(mine["memory"])
        counts = {key: operator.index(mine[key]) for key in _COUNTS}
        members = tuple(mine["members"])
        sender, receiver = self._ends()
        sender.codec = self.recipe.schedule.codec(self.recipe.up.codec, counts["round"] + 1)
        sender.load_state_dict(memory["sender"])
        receiver.load_state_dict(memory["receiver"])
        held = [
            mine["global"][n].to(g, copy=True)
            for n, g in zip(self._names, self._global, strict=True)
        ]
        self._sender, self._receiver, self._global = sender, receiver, held
        for key, count in counts.items():
            setattr(self, key, count)
        self.members = members
        self._posted = None
        if self._rounds is not None:
            self._rounds.read(self.round)
