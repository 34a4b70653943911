"""Build information of gkd."""

version: str  #: of gkd
torch_version: str  #: the torch that gkd was compiled against
compiler: str  #: that compiled the C++ sources, with its version
cuda_version: str  #: the CUDA toolkit that compiled gkd, "" for a CPU-only build
cuda_architectures: str  #: the architectures in the library, "" for a CPU-only build
