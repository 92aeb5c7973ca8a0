"""The network, in plain torch: backbone (ir50), cross similarity attention, the whole."""

from qcs.models.ir50 import IR
from qcs.models.network import ROLES, Comparison, QCSNetwork

__all__ = ["IR", "ROLES", "Comparison", "QCSNetwork"]
