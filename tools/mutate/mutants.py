"""All mutants."""

from .cache import CACHE
from .calls import AUTOGRAD, CHECKS, SHARDING
from .faces import FACES
from .kernels import KERNELS
from .maths import CPU, MATHS
from .sparse import SPARSE
from .sparse_kernels import SPARSE_KERNELS
from .training import TRAINING

MUTANTS = [
    *MATHS,
    *CPU,
    *AUTOGRAD,
    *CHECKS,
    *SHARDING,
    *KERNELS,
    *TRAINING,
    *SPARSE,
    *SPARSE_KERNELS,
    *CACHE,
    *FACES,
]
