"""By what names the residuals of a model's parameters are kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import Module

__all__ = ["Names"]


class Names:
    """Names of parameters: those of a module, or by the order in which a step first has them.

    module: None: by order. Parameters are kept, so that no id is used again.
    """

    def __init__(self, module: Module | None) -> None:
        self._named = None if module is None else _names_of(module)  # by id
        self._given = [] if module is None else list(module.parameters())
        self._names: dict[int, str] = {}  # by id
        self._parameters: list[Tensor] = []
        self._loaded: list[str] = []  # those that a state had, in the order of _parameters

    def __len__(self) -> int:
        return len(self._names)

    @property
    def of_module(self) -> bool:
        """Whether the names are a module's."""
        return self._named is not None

    def of(self, parameter: Tensor) -> str:
        """Return a parameter's name, of a new one the next; ValueError where it can have none."""
        name = self._names.get(id(parameter))
        if name is None:
            name = self._new(parameter, len(self._names))
            self._names[id(parameter)] = name
            self._parameters.append(parameter)
        return name

    def _new(self, parameter: Tensor, number: int) -> str:
        shape = tuple(parameter.shape)
        if self._named is not None:
            name = self._named.get(id(parameter))
            if name is None:
                raise ValueError(
                    f"ddp.hook: parameters must be of the module that State was given, got one of "
                    f"shape {shape} that is not."
                )
        else:
            known = self._loaded
            name = known[number] if number < len(known) else str(number)
        if self._loaded and name not in self._loaded:
            raise ValueError(
                f"ddp.hook: parameters must be those of the state that was loaded, got {name!r} of "
                f"shape {shape} beside {len(self._loaded)} others."
            )
        return name

    def state(self) -> list[str]:
        """Return the names in order."""
        return [self._names[id(each)] for each in self._parameters] or self._loaded

    def check(self, names: Sequence[str]) -> None:
        """Raise ValueError where the names of a state are not those that are known."""
        known = self._known()
        if known and names and set(known) != set(names):
            raise ValueError(
                f"ddp.State: parameters must be the {len(names)} of the state, got "
                f"{len(known)} others. Construct a new State for another model."
            )

    def load(self, names: list[str]) -> None:
        """Go on from the names of a state."""
        forget = not self._known()
        self._loaded = names
        if forget:
            self._names, self._parameters = {}, []

    def _known(self) -> list[str]:
        """Return the names by order, which stay: DDP changes the order after the first step."""
        return [] if self.of_module else [self._names[id(each)] for each in self._parameters]


def _names_of(module: Module) -> dict[int, str]:
    """Return the parameters' names by id, without what wrappers put before them."""
    names = {}
    for name, parameter in module.named_parameters():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        names[id(parameter)] = ".".join(parts)
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names
