"""What gcext raises beyond ValueError and MemoryError."""

from __future__ import annotations

__all__ = ["DecodeError"]


class DecodeError(ValueError):
    """Bytes that are no packet, or not the packet that was expected.

    Attributes:
        code: the rule that was broken, a stable word listed in docs/wire-format.md.
        field: the field in which it was found.
        offset: of that field in the message, in bytes.

    >>> import gcext
    >>> try:
    ...     gcext.Packet.from_bytes(b"not a packet")
    ... except gcext.DecodeError as error:
    ...     error.code
    'truncated'
    """

    def __init__(self, code: str, field: str, offset: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.offset = offset

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str, int, str]]:
        return type(self), (self.code, self.field, self.offset, str(self))
