"""All mutants."""

from .calls import AUTOGRAD, CHECKS, SHARDING
from .kernels import KERNELS
from .maths import CPU, MATHS

MUTANTS = [*MATHS, *CPU, *AUTOGRAD, *CHECKS, *SHARDING, *KERNELS]
