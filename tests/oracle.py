"""The exact answers of sparse ternary compression: those that the benchmarks compare with."""

from bench.oracle import Answer, exact_mean, stc, stc_model

__all__ = ["Answer", "exact_mean", "stc", "stc_model"]
