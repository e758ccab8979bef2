"""The ids of clients: whole numbers or strings, of one kind in a round."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

__all__ = ["Client", "as_client", "by_kind", "client_of", "in_order", "text_of"]

Client: TypeAlias = "int | str"


def in_order(op: str, clients: Iterable[Any]) -> list[Any]:
    """Return the clients' ids, sorted; TypeError for other types, or 7 beside "7"."""
    listed = list(clients)
    for client in listed:
        as_client(op, client)
    if len({isinstance(client, str) for client in listed}) > 1:
        kinds = sorted({type(client).__name__ for client in listed})
        raise TypeError(
            f"{op}: clients must be all numbers or all strings, got {' and '.join(kinds)}. "
            "Use one type of id."
        )
    return sorted(listed)


def as_client(op: str, client: Any) -> Client:
    """Return a client's id as int or str; TypeError for what is no whole number or text."""
    if isinstance(client, str):
        return client
    try:
        return int(operator.index(client))  # also of True
    except TypeError:
        raise TypeError(
            f"{op}: a client must be a whole number or a string, got {client!r:.100}."
        ) from None


def by_kind(client: Any) -> tuple[bool, Any]:
    """Return a key that sorts numbers before strings: clients of several rounds may be both."""
    return isinstance(client, str), client


def text_of(client: Client) -> str:
    """Return a client as text: a number's digits, or an apostrophe and the string."""
    return f"'{client}" if isinstance(client, str) else str(client)


def client_of(text: str) -> Client:
    """Return the client of a text; ValueError where it is none that ``text_of`` returned."""
    client = text[1:] if text.startswith("'") else int(text)
    if text_of(client) != text:
        raise ValueError(f"a client must be digits, or an apostrophe and a text, got {text!r:.100}")
    return client
