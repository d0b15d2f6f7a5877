"""Other projects' kernels as contenders, each at its best; none is needed to run a benchmark."""

from experiments.peers.ejkernel import ejkernel
from experiments.peers.fla import Fla, FlaAtShape, load_fla
from experiments.peers.jla import Jla, load_jla

__all__ = ["Fla", "FlaAtShape", "Jla", "ejkernel", "load_fla", "load_jla"]
