"""Error feedback and links: the residual is never lost, whatever fails on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packet_kit import dense

import gcext
from gcext._codecs.topk import STC
from gcext._links.sender import Sender


def feedback(p: float = 0.1, **options: object) -> gcext.ErrorFeedback:
    return gcext.ErrorFeedback(gcext.codec(f"stc:p={p}"), **options)  # type: ignore[arg-type]


def test_matches_the_plain_form_over_many_steps() -> None:
    comp, residual = feedback(), torch.zeros(5000)
    for _ in range(20):
        tensor = torch.randn(5000)
        assert comp.compress(tensor, "w").to_bytes() == gcext.stc(tensor, 0.1, residual).to_bytes()
        assert torch.equal(comp.residual("w"), residual)


def test_nothing_is_lost_with_exact_values() -> None:
    comp = gcext.ErrorFeedback(gcext.codec("topk:p=0.01"))
    grid = torch.randint(-8, 9, (50, 2000)).float()  # sums stay exact
    sent = sum(dense(comp.compress(g, "w")) for g in grid)
    assert torch.equal(sent + comp.residual("w"), grid.sum(0))


def test_names_are_apart() -> None:
    comp, alone = feedback(), feedback()
    for _ in range(3):
        a, b = torch.randn(100), torch.randn(100)
        comp.compress(b, "b")
        assert comp.compress(a, "a").to_bytes() == alone.compress(a, "a").to_bytes()


def test_decay() -> None:
    comp = feedback(0.5, decay=0.5)
    comp.compress(torch.tensor([4.0, 1.0]), "w")
    packet = comp.compress(torch.zeros(2), "w")
    assert dense(packet).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_tensor_leaves_the_residual(bad: float) -> None:
    comp = feedback()
    comp.compress(torch.randn(1000), "w")
    before = comp.residual("w")
    tensor = torch.randn(1000)
    tensor[17] = bad
    with pytest.raises(ValueError, match="at index 17"):
        comp.compress(tensor, "w")
    assert torch.equal(comp.residual("w"), before)
    assert comp.pending == ()
    comp.compress(torch.randn(1000), "w")


def test_overflow_leaves_the_residual() -> None:
    comp = feedback(0.2)
    comp.compress(torch.tensor([3e38, 2.9e38, 0, 0, 0]), "w")
    before = comp.residual("w")
    with pytest.raises(ValueError, match=r"tensor plus residual must be finite.*index 1"):
        comp.compress(torch.full((5,), 3e38), "w")
    assert torch.equal(comp.residual("w"), before)


def test_no_memory_leaves_the_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports what malloc refused; the second slot's own allocation fails in torch."""
    comp = feedback()
    comp.compress(torch.randn(1000), "w")
    before = comp.residual("w")

    def refused(*args: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = args[2]
        assert isinstance(out, torch.Tensor)
        out.fill_(7)  # the pass may have got anywhere
        return torch.empty(100), torch.empty(100), torch.tensor([0, 4, -1, 0])

    with monkeypatch.context() as patch:
        patch.setattr("gcext._native.ops.select", refused)
        with pytest.raises(MemoryError, match="no memory"):
            comp.compress(torch.randn(1000), "w")
    assert torch.equal(comp.residual("w"), before)
    assert comp.compress(torch.randn(1000), "w").k == 100


def test_shape_must_stay() -> None:
    comp = feedback()
    comp.compress(torch.randn(10), "w")
    with pytest.raises(ValueError, match=r"'w' must stay \(10,\).*got \(2, 5\)"):
        comp.compress(torch.randn(2, 5), "w")


class TestPending:
    def test_commit(self) -> None:
        comp, straight = feedback(), feedback()
        for _ in range(3):
            tensor = torch.randn(1000)
            packet = comp.compress(tensor, "w", commit=False)
            assert comp.pending == ("w",)
            comp.commit("w")
            assert packet.to_bytes() == straight.compress(tensor, "w").to_bytes()
        assert torch.equal(comp.residual("w"), straight.residual("w"))

    def test_rollback_goes_back_bit_for_bit(self) -> None:
        comp = feedback()
        comp.compress(torch.randn(1000), "w")
        before = comp.residual("w")
        tensor = torch.randn(1000)
        first = comp.compress(tensor, "w", commit=False)
        comp.rollback("w")
        assert torch.equal(comp.residual("w"), before)
        assert comp.compress(tensor, "w").to_bytes() == first.to_bytes()

    def test_rollback_of_the_first_leaves_nothing(self) -> None:
        comp = feedback()
        comp.compress(torch.randn(10), "w", commit=False)
        comp.rollback("w")
        assert comp.state_dict()["residuals"] == {}

    def test_one_at_a_time(self) -> None:
        comp = feedback()
        comp.compress(torch.randn(10), "w", commit=False)
        with pytest.raises(RuntimeError, match="'w' is pending"):
            comp.compress(torch.randn(10), "w")

    def test_several_names_at_once(self) -> None:
        comp, straight = feedback(), feedback()
        names = [str(i) for i in range(5)]
        for _ in range(3):
            tensors = {name: torch.randn(100) for name in names}
            for name in names:
                comp.compress(tensors[name], name, commit=False)
                straight.compress(tensors[name], name)
            for name in reversed(names):
                comp.commit(name)
        assert all(torch.equal(comp.residual(n), straight.residual(n)) for n in names)

    @pytest.mark.parametrize("settle", ["commit", "rollback"])
    def test_nothing_to_settle(self, settle: str) -> None:
        with pytest.raises(KeyError):
            getattr(feedback(), settle)("w")


class TestState:
    def test_round_trip_bit_for_bit(self, tmp_path: Path) -> None:
        comp = feedback()
        for name in ("a", "b"):
            comp.compress(torch.randn(1000), name)
        comp.compress(torch.randn(1000), "b", commit=False)
        torch.save(comp.state_dict(), tmp_path / "state.pt")
        again = feedback()
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert again.pending == ("b",)
        for each in (comp, again):
            each.commit("b")
        for name in ("a", "b"):
            tensor = torch.randn(1000)
            packets = [each.compress(tensor, name).to_bytes() for each in (comp, again)]
            assert packets[0] == packets[1]

    def test_is_a_copy(self) -> None:
        comp = feedback()
        comp.compress(torch.randn(100), "w")
        state = comp.state_dict()
        kept = state["residuals"]["w"].clone()
        for _ in range(3):
            comp.compress(torch.randn(100), "w")
        assert torch.equal(state["residuals"]["w"], kept)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 1}, "version 3"),
            ({"extra": 0}, "version 3"),
            ({"decay": 0.5}, "decay must be the state's"),
            ({"codec": "sign"}, "codec must be the state's 'sign', got 'stc:p="),
            ({"exact_below": 3}, "exact_below must be the state's 3, got 0"),
            ({"residuals": {"w": torch.ones(3).double()}}, "float32"),
            ({"pending": {"w": torch.ones(3)}}, "residual's shape"),
        ],
    )
    def test_what_does_not_fit_changes_nothing(self, change: dict[str, object], match: str) -> None:
        comp = feedback()
        comp.compress(torch.randn(100), "w")
        before = comp.residual("w")
        with pytest.raises(ValueError, match=match):
            comp.load_state_dict(comp.state_dict() | change)
        assert torch.equal(comp.residual("w"), before)

    def test_another_codec_goes_on_where_it_is_allowed(self) -> None:
        comp = gcext.ErrorFeedback("stc:p=0.1")
        comp.compress(torch.randn(100), "w")
        for spec, seed in [("stc:p=0.2", None), ("sign", None), ("randomk:p=0.5", 1)]:
            other = gcext.ErrorFeedback(spec, seed=seed)
            with pytest.raises(ValueError, match=r"codec must be the state's .* strict=False"):
                other.load_state_dict(comp.state_dict())
            other.load_state_dict(comp.state_dict(), strict=False)
            assert torch.equal(other.residual("w"), comp.residual("w"))


def test_diagnostics_against_their_definitions() -> None:
    comp = feedback(0.05, diagnose=True)
    comp.compress(torch.randn(2000), "w")
    gradient = torch.randn(2000)
    decoded = dense(comp.compress(gradient, "w")).double()
    got, left, g = comp.diagnostics["w"], comp.residual("w").double(), gradient.double()
    assert got.residual_ratio == pytest.approx(float(left.norm() / g.norm()))
    assert got.cosine == pytest.approx(float(g @ decoded / (g.norm() * decoded.norm())))
    assert got.age == pytest.approx(float(left.abs().sum() / decoded.abs().sum()))


def test_age_is_the_mean_delay() -> None:
    """Four equal elements take turns: 0 + 1 + 2 + 3 units are held, and 4 leave a round."""
    lazy = feedback(0.25, diagnose=True)
    for _ in range(200):
        lazy.compress(torch.ones(4), "w")
    assert lazy.diagnostics["w"].age == pytest.approx(1.5, abs=0.1)


def test_stateless_remembers_nothing() -> None:
    sender = Sender(STC(0.5))
    tensor = torch.randn(10)
    assert sender.compress(tensor, "w").to_bytes() == sender.compress(tensor, "w").to_bytes()
    sender.compress(tensor, "w", commit=False)
    assert sender.pending == ("w",)
    sender.rollback("w")
    assert sender.state_dict() == {}
    with pytest.raises(ValueError, match="must be empty"):
        sender.load_state_dict(feedback().state_dict())


def test_momentum_is_on_top_of_what_the_recipe_combines() -> None:
    for spec, inner in (
        ("pstc:p=0.1,alpha=0.2,momentum=0.9", gcext.aggregate.Projection),
        ("stc:p=0.1,momentum=0.9", gcext.aggregate.Mean),
        ("pstc:p=0.1,combine=median,momentum=0.9", gcext.aggregate.Median),
        ("topk:p=0.1,momentum=0.9,combine=vote,scale=0.5", gcext.aggregate.Vote),
    ):
        receiver = gcext.recipe(spec).up.receiver()
        assert isinstance(receiver, gcext.aggregate.Momentum) and receiver.beta == 0.9
        assert isinstance(receiver.inner, inner)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        gcext.recipe("pstc:momentum=1")


def test_links_make_the_ends_of_a_recipe() -> None:
    recipe = gcext.recipe("pstc:p=0.1,alpha=0.2,tau=3")
    assert isinstance(recipe.up.sender(), gcext.ErrorFeedback)
    assert isinstance(recipe.up.receiver(), gcext.aggregate.Projection)
    assert recipe.down.codec.spec == "stc:p=0.1"
    assert recipe.schedule.local_epochs == 1
    assert gcext.recipe("fedavg") == gcext.recipe("none")
    assert isinstance(gcext.recipe("none").up.sender(), Sender)
    assert set(gcext.recipes()) >= {"pstc", "stc", "none"}


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("sign:feedback=yes", "feedback must be one of true, false"),
        ("stc:p=0.1,decay=0.5", "unknown option decay"),
        ("sign:down=", "down: must be one of"),
        ("sign:down=stc:p=2", "p must be in"),
        ("sign:down=sign:down=sign", "unknown option down"),
        ("qsgd:bits=2,bits=3", "each once"),
        ("pstc:tau=1.5", "whole number"),
        ("pstc:tau=inf", "whole number"),
        ("pstc:alpha=2", "alpha"),
        ("stc:alpha=0.1", "unknown option alpha"),
        ("nothing", "recipe: must be one of"),
    ],
)
def test_invalid_recipes_raise(spec: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gcext.recipe(spec)


@pytest.mark.parametrize(
    ("spec", "up", "down"),
    [
        ("sign", ("sign", False), ("dense", False)),
        ("qsgd:bits=2,feedback=true", ("qsgd:bits=2,bucket=512", True), ("dense", False)),
        ("stc:p=0.1,down=dense", ("stc:p=0.1", True), ("dense", False)),
        ("sign:down=topk:p=0.5", ("sign", False), ("topk:p=0.5", False)),
        (
            "sign:feedback=true,down=qsgd:bits=2,bucket=64,feedback=true",
            ("sign", True),
            ("qsgd:bits=2,bucket=64", True),
        ),
    ],
)
def test_every_codec_is_a_recipe(spec: str, up: tuple[str, bool], down: tuple[str, bool]) -> None:
    made = gcext.recipe(spec)
    assert (made.up.codec.spec, made.up.feedback) == up
    assert (made.down.codec.spec, made.down.feedback) == down
    assert set(gcext.recipes()) >= set(gcext.codecs())
    for name in gcext.recipes():
        gcext.recipe(name)


@pytest.mark.parametrize("kind", [gcext.ErrorFeedback, Sender])
class TestSeeds:
    spec = "qsgd:bits=1,bucket=64"
    tensor = torch.randn(500, generator=torch.Generator().manual_seed(0))

    def send(self, sender: Sender, name: str, **how: bool) -> bytes:
        return sender.compress(self.tensor, name, **how).to_bytes()

    def test_must_be_given(self, kind: type[Sender]) -> None:
        with pytest.raises(ValueError, match=r"qsgd:bits=1.* needs a base seed.* Pass seed="):
            kind(self.spec)
        with pytest.raises(ValueError, match="needs a base seed"):
            gcext.recipe(self.spec).up.sender()
        kind("sign").compress(self.tensor, "w")

    def test_never_repeat(self, kind: type[Sender]) -> None:
        """Without feedback the tensor is the same each time, so that equal seeds would show.

        With feedback this shows for the first tensor of each name and sender alone.
        """
        sender, other = kind(self.spec, seed=1), kind(self.spec, seed=2)
        messages = [self.send(each, name) for each in (sender, other) for name in "aabab"]
        assert len(set(messages)) == 10
        again = kind(gcext.codec(self.spec), seed=1)
        assert [self.send(again, name) for name in "aabab"] == messages[:5]
        assert [self.send(again, name) for name in "ab"] == [self.send(sender, n) for n in "ab"]

    def test_are_settled_with_the_packet(self, kind: type[Sender]) -> None:
        sender, sure = kind(self.spec, seed=1), kind(self.spec, seed=1)
        lost = self.send(sender, "w", commit=False)
        with pytest.raises(RuntimeError, match="'w' is pending"):
            sender.compress(self.tensor, "w")
        sender.rollback("w")
        assert self.send(sender, "w", commit=False) == lost == self.send(sure, "w")
        sender.commit("w")
        assert self.send(sender, "w") == self.send(sure, "w")

    def test_go_on_from_a_state(self, kind: type[Sender], tmp_path: Path) -> None:
        sender = kind(self.spec, seed=-1)
        for name in "aab":
            self.send(sender, name)
        self.send(sender, "b", commit=False)
        torch.save(sender.state_dict(), tmp_path / "state.pt")
        again = kind(self.spec, seed=2**64 - 1)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert again.pending == ("b",)
        for each in (sender, again):
            each.commit("b")
        for name in "abc":
            assert self.send(again, name) == self.send(sender, name)

    def test_of_another_sender_are_refused(self, kind: type[Sender]) -> None:
        sender = kind(self.spec, seed=1)
        self.send(sender, "w")
        state = sender.state_dict()
        wrong: list[tuple[dict[str, object], str]] = [
            ({"seed": 2}, "seed must be the state's 2, got 1"),
            ({"counts": {"w": -1}}, "counts must be names and whole numbers"),
            ({"counts": {"w": 0.5}}, "counts must be names and whole numbers"),
            ({"more": 1}, "state must be of keys"),
        ]
        for change, match in wrong:
            with pytest.raises(ValueError, match=match):
                sender.load_state_dict(state | {"seeds": state["seeds"] | change})
        with pytest.raises(ValueError, match=r"(state|codec) must be"):
            sender.load_state_dict(kind("sign").state_dict())
        assert sender.state_dict().keys() == state.keys()
        assert self.send(sender, "w") != self.send(kind(self.spec, seed=1), "w")


OUT_OF_MEMORY = """
import resource, torch, gcext
torch.set_num_threads(1)
n = 4_000_000
comp = gcext.ErrorFeedback(gcext.codec("stc:p=0.9"))
tensor = torch.randn(n)
comp.compress(tensor, "w")
before = comp.residual("w")
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
caught = 0
for spare in range(0, 200 << 20, 8 << 20):
    resource.setrlimit(resource.RLIMIT_AS, (held + spare, resource.RLIM_INFINITY))
    try:
        comp.compress(tensor, "w", commit=False)
        comp.rollback("w")
    except MemoryError as error:
        assert "no memory" in str(error), error
        caught += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gcext.release_memory()  # else the next call would need little
    assert torch.equal(comp.residual("w"), before)
    assert comp.pending == ()
assert caught > 2, caught
assert comp.compress(tensor, "w").k == int(0.9 * n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_real_lack_of_memory_leaves_the_residual() -> None:
    """The address space is capped a little further at each try: every allocation fails once."""
    run = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_repr_holds_the_options_of_the_stages() -> None:
    """Ranks compare these."""
    one, other = (repr(gcext.recipe(f"dgc:momentum={m}").up) for m in (0.5, 0.9))
    assert one != other and "MomentumCorrection(" in one
