"""Lossy source coding by polar codes: R bits a symbol, near the bound R = 1 - h2(D).

    coded = gcext.polar.encode(signs, rate=0.5)        # 0/1 symbols; half a bit each
    gcext.polar.decode(coded)                          # agrees with 87.5 % of them

Korada & Urbanke 2010 (arXiv:0903.0307): the successive-cancellation decoder of a polar channel code
is the encoder, the polar transform the decoder; both take O(N log N) for a block of N symbols.
"""

from gcext.polar._code import Coded, decode, encode
from gcext.polar._codec import PolarSigns
from gcext.polar._rotated import Rotated, encode_rotated

__all__ = ["Coded", "PolarSigns", "Rotated", "decode", "encode", "encode_rotated"]
