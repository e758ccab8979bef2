"""The rows stc, stc-ef, stc-plain and stc-wire (``bench stc``) and select (``bench select``)."""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

import gcext
from bench import oracle
from bench.case import Case, Problem, Selected, Setting, Variant
from bench.variants import Formulation, Named, formulations
from gcext._native import ops


def stc(setting: Setting, compiled: bool) -> Case:
    """``gcext.stc`` with its residual: what a training step calls."""
    problem = Problem(setting)
    return Case(
        "stc",
        setting,
        _stc_variant(problem, setting.p, "gcext"),
        _baselines(problem, problem.residual, True, compiled),
        problem.floor(),
        Problem.floor_is,
    )


def stc_ef(setting: Setting, compiled: bool) -> Case:
    """``ErrorFeedback.compress``: two slots, so that nothing is lost when a call raises.

    Every call is rolled back outside the timed part, so that each sees equal data and no slot is
    copied. A commit, which is left out therefore, swaps two references.
    """
    problem = Problem(setting)
    feedback = gcext.ErrorFeedback(gcext.codec(f"stc:p={setting.p!r}"))
    feedback.load_state_dict({**feedback.state_dict(), "residuals": {"g": problem.start}})

    def reset() -> None:
        if feedback.pending:
            feedback.rollback("g")

    def check(packet: gcext.Packet) -> str:
        residual = feedback.state_dict()["pending"]["g"]
        return check_exact(problem.ternary, Selected(packet.index, packet.value, residual))

    run = partial(feedback.compress, problem.tensor, "g", commit=False)
    return Case(
        "stc-ef",
        setting,
        Variant("gcext", run, check, reset),
        _baselines(problem, problem.residual, True, compiled),
        problem.floor(),
        Problem.floor_is,
    )


def stc_plain(setting: Setting, compiled: bool) -> Case:
    """``gcext.stc`` without a residual: one read, so it may beat the floor, which also writes."""
    problem = Problem(setting, feedback=False)

    def check(packet: gcext.Packet) -> str:
        return check_exact(problem.ternary, Selected(packet.index, packet.value, None))

    return Case(
        "stc-plain",
        setting,
        Variant("gcext", partial(gcext.stc, problem.tensor, setting.p), check),
        _baselines(problem, None, True, compiled),
        problem.floor(),
        Problem.floor_is,
    )


def select(setting: Setting, compiled: bool) -> Case:
    """The operator alone, fp32 values, residual in place."""
    problem = Problem(setting)
    args = (problem.tensor, None, problem.residual, problem.k, 1.0, 1.0, False)

    def check(got: tuple[Tensor, Tensor, Tensor]) -> str:
        index, value, info = got
        count, status = info[:2].tolist()
        if status:
            return f"status {status}"
        selected = Selected(index[:count], value[:count], problem.residual)
        return check_exact(problem.sparse, selected)

    return Case(
        "select",
        setting,
        Variant("gcext", partial(ops.select, *args), check, problem.reset),
        _baselines(problem, problem.residual, False, compiled),
        problem.floor(),
        Problem.floor_is,
    )


def stc_wire(setting: Setting, compiled: bool) -> Case:
    """A packet to bytes, back, and added to a dense tensor; ``stc_ms`` is what it took to make it.

    The baselines are what people send without a wire format: torch.save of the pairs, and their
    raw memory. Neither checks what it receives.
    """
    problem = Problem(setting)
    problem.reset()
    made = gcext.stc(problem.tensor, setting.p, residual=problem.residual)
    assert made.index is not None
    index, value, shape = made.index, made.value, tuple(problem.tensor.shape)
    fresh = [made]

    def reset() -> None:
        # A packet remembers its bytes, so each call gets one that has none yet.
        fresh[0] = gcext.Packet("ternary", shape, torch.float32, index, value, made.scale)
        problem.reset()

    def run() -> bytes:
        message = fresh[0].to_bytes()
        gcext.Packet.from_bytes(message, expect=shape).add_to_(problem.residual)
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
        expected[problem.ternary.index] += problem.ternary.value
        return oracle.differs("the tensor added to", problem.residual.numpy(), expected)

    def check(message: bytes) -> str:
        packet = gcext.Packet.from_bytes(message, expect=shape)
        pairs = Selected(packet.index, packet.value, None)
        return check_exact(problem.ternary, pairs) or added(message)

    return Case(
        "stc-wire",
        setting,
        Variant("gcext", run, check, reset),
        (Variant("torch.save", saved, added, reset), Variant("raw", raw, added, reset)),
        problem.floor(),
        Problem.floor_is,
        also=(_stc_variant(problem, setting.p, "stc"),),
        facts={
            "bytes": made.nbytes,
            "entropy_bytes": _entropy_bytes(setting),
            "torch_bytes": len(saved()),
        },
    )


def check_exact(answer: oracle.Answer, got: Selected) -> str:
    """Return how what gcext gave differs from the answer by a bit, or ""."""
    if got.indices is None:
        return "no indices"
    return (
        oracle.differs("indices", got.indices.long().numpy(), answer.index)
        or oracle.differs("values", got.values.numpy(), answer.value)
        or (
            oracle.differs("residual", got.residual.numpy(), answer.residual)
            if got.residual is not None
            else ""
        )
    )


def check_close(answer: oracle.Answer, got: Selected) -> str:
    """Return how a baseline differs from the answer: in any index, or in values beyond rounding."""
    if got.indices is None:
        index = got.values.nonzero().squeeze(1)
        value = got.values[index].numpy()
    else:
        index, order = got.indices.sort()
        value = got.values[order].numpy()
    why = oracle.differs("indices", index.long().numpy(), answer.index)
    why = why or oracle.departs("values", value, answer.value, answer.value)
    if why or got.residual is None:
        return why
    # Where nothing was chosen the residual is the sum itself; elsewhere the mean's rounding shows.
    left = got.residual.numpy()
    scale = np.zeros_like(answer.residual)
    scale[answer.index] = np.abs(answer.value) + np.abs(answer.residual[answer.index])
    return oracle.departs("residual", left, answer.residual, scale)


def _stc_variant(problem: Problem, p: float, name: str) -> Variant:
    def check(packet: gcext.Packet) -> str:
        got = Selected(packet.index, packet.value, problem.residual)
        return check_exact(problem.ternary, got)

    run = partial(gcext.stc, problem.tensor, p, residual=problem.residual)
    return Variant(name, run, check, problem.reset)


def _baselines(
    problem: Problem, residual: Tensor | None, ternary: bool, compiled: bool
) -> tuple[Variant, ...]:
    def run(formulation: Formulation) -> Selected:
        return formulation(problem.tensor, residual, problem.k, ternary)

    def check(got: Selected) -> str:
        return check_close(problem.ternary if ternary else problem.sparse, got)

    def variant(named: Named) -> Variant:
        run_it = partial(run, named.run)
        return Variant(named.name, run_it, check, problem.reset, compiled=named.compiled)

    return tuple(variant(named) for named in formulations(compiled))


def _entropy_bytes(setting: Setting) -> float:
    """n*(H(q)+q)/8 at q = k/n: no code of random supports and signs is shorter on average."""
    q = setting.k / setting.n
    entropy = sum(-x * math.log2(x) for x in (q, 1 - q) if x > 0)
    return setting.n * (entropy + q) / 8
