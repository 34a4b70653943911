"""Build information of gkd."""

version: str  #: of gkd
torch_version: str  #: the torch that gkd was compiled against
cuda_version: str  #: the CUDA toolkit that compiled gkd, "" for a CPU-only build
cuda_architectures: str  #: the architectures in the library, "" for a CPU-only build
