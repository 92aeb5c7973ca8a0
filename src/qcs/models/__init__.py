"""The network, in plain torch: backbone (ir50), cross similarity attention, the whole."""

from qcs.models.ir50 import IR
from qcs.models.network import Comparison, QCSNetwork

__all__ = ["IR", "Comparison", "QCSNetwork"]
