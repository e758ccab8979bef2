"""The rows stc, stc-ef, stc-plain and stc-wire (``bench stc``) and select (``bench select``)."""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

import gcext

from . import internals, oracle
from .case import Case, Problem, Selected, Setting
from .timing import Variant
from .variants import Formulation, formulations


def stc(setting: Setting, compiled: bool) -> Case:
    """``gcext.stc`` with its residual: what a training step calls."""
    problem = Problem(setting)
    return _case("stc", problem, _stc_variant(problem, "gcext"), compiled)


def stc_ef(setting: Setting, compiled: bool) -> Case:
    """``ErrorFeedback.compress``: two slots, so that nothing is lost when a call raises.

    Every call is rolled back outside the timed part, so that each sees equal data and no slot is
    copied. A commit, which is left out therefore, swaps two references. Three steps have gone
    before, as the residual that a loaded state holds is not read in the same way.
    """
    feedback = gcext.ErrorFeedback(gcext.codec(f"stc:p={setting.p!r}"))
    generator = torch.Generator().manual_seed(setting.seed + 1)
    for _ in range(3):
        feedback.compress(setting.draw(generator), "g")
    problem = Problem(setting, start=feedback.residual("g"))

    def reset() -> None:
        if feedback.pending:
            feedback.rollback("g")

    def check(packet: gcext.Packet) -> str:
        return problem.exact(packet, feedback.state_dict()["pending"]["g"])

    run = partial(feedback.compress, problem.tensor, "g", commit=False)
    return _case("stc-ef", problem, Variant("gcext", run, check, reset), compiled)


def stc_plain(setting: Setting, compiled: bool) -> Case:
    """``gcext.stc`` without a residual: one read, so it may beat the floor, which also writes."""
    problem = Problem(setting, feedback=False)
    run = partial(gcext.stc, problem.tensor, setting.p)
    return _case("stc-plain", problem, Variant("gcext", run, problem.exact), compiled)


def select(setting: Setting, compiled: bool) -> Case:
    """The operator alone, fp32 values, residual in place."""
    problem = Problem(setting, ternary=False)
    args = (problem.tensor, None, problem.residual, setting.k, 1.0, 1.0, False)

    def check(got: tuple[Tensor, Tensor, Tensor]) -> str:
        index, value, info = got
        count, status = info[:2].tolist()
        if status:
            return f"status {status}"
        return problem.exact_pairs(index[:count], value[:count], problem.residual)

    run = partial(internals.select, *args)
    return _case("select", problem, Variant("gcext", run, check, problem.reset), compiled)


def stc_wire(setting: Setting, compiled: bool) -> Case:
    """A packet to bytes, back, and added to a dense tensor; ``stc_ms`` is what it took to make it.

    The baselines are what people send without a wire format: torch.save of the pairs, and their
    raw memory. Neither checks what it receives.
    """
    problem = Problem(setting)
    problem.reset()
    made = gcext.stc(problem.tensor, setting.p, residual=problem.residual)
    index, value = internals.pairs(made)
    fresh = [made]

    def reset() -> None:
        # A packet remembers its bytes, so each call gets one that has none yet.
        fresh[0] = internals.ternary(setting.n, index, value, made.scale)
        problem.reset()

    def run() -> bytes:
        message = fresh[0].to_bytes()
        gcext.Packet.from_bytes(message, expect=(setting.n,)).add_to_(problem.residual)
        return message

    def saved() -> bytes:
        buffer = io.BytesIO()
        torch.save((index, value), buffer)
        message = buffer.getvalue()
        at, what = torch.load(io.BytesIO(message), weights_only=True)
        problem.residual.index_add_(0, at, what)
        return message

    def raw() -> bytes:
        message = index.numpy().tobytes() + value.numpy().tobytes()
        at = np.frombuffer(message, index.numpy().dtype, made.k)
        what = np.frombuffer(message, np.float32, made.k, offset=at.nbytes)
        problem.residual.numpy()[at] += what
        return message

    def added(_: bytes) -> str:
        expected = problem.start.numpy().copy()
        expected[problem.answer.index] += problem.answer.value
        return oracle.differs("the tensor added to", problem.residual.numpy(), expected)

    def check(message: bytes) -> str:
        packet = gcext.Packet.from_bytes(message, expect=(setting.n,))
        return problem.exact(packet) or added(message)

    # n*(H(q)+q)/8 at q = k/n: no code of random supports and signs is shorter on average.
    q = setting.k / setting.n
    entropy = setting.n * (sum(-x * math.log2(x) for x in (q, 1 - q) if x > 0) + q) / 8
    return Case(
        "stc-wire",
        setting,
        Variant("gcext", run, check, reset),
        (Variant("torch.save", saved, added, reset), Variant("raw", raw, added, reset)),
        problem.floor(),
        also=(_stc_variant(problem, "stc"),),
        facts={"bytes": made.nbytes, "entropy_bytes": entropy, "torch_bytes": len(saved())},
    )


def _stc_variant(problem: Problem, name: str) -> Variant:
    run = partial(gcext.stc, problem.tensor, problem.setting.p, residual=problem.residual)
    check = partial(problem.exact, residual=problem.residual)
    return Variant(name, run, check, problem.reset)


def _case(name: str, problem: Problem, ours: Variant, compiled: bool) -> Case:
    """Return the case of ``ours`` against every formulation, over the bare pass."""
    residual = problem.residual if problem.feedback else None

    def run(formulation: Formulation) -> Selected:
        return formulation(problem.tensor, residual, problem.setting.k, problem.ternary)

    baselines = tuple(
        Variant(each.name, partial(run, each.run), problem.close, problem.reset, each.compiled)
        for each in formulations(compiled)
    )
    return Case(name, problem.setting, ours, baselines, problem.floor())
