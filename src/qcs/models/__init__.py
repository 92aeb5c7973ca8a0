"""The network in PyTorch alone: the backbones, its parts, and QCSNetwork, which joins them."""

from qcs.models.backbones.ir50 import IR
from qcs.models.backbones.mobilefacenet import MobileFaceNet
from qcs.models.network import ROLES, Comparison, QCSNetwork

__all__ = ["IR", "ROLES", "Comparison", "MobileFaceNet", "QCSNetwork"]
