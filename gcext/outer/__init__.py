"""Outer-loop training: many local steps, then one step with the mean of what they changed.

Local SGD (Stich 2019, arXiv:1805.09767), DiLoCo (Douillard et al. 2023, arXiv:2311.08105) and
SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706), between processes of ``torch.distributed``.
"""

from gcext.outer._optimizer import OuterOptimizer

__all__ = ["OuterOptimizer"]
