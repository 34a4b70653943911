"""How this gkd was built; CMake writes it (cmake/_build.py.in)."""

version: str  #: of gkd
torch_version: str  #: the torch that gkd was compiled against
torch_cuda_version: str  #: that torch's CUDA, "" without
compiler: str  #: of the C++ sources, with its version
cuda_version: str  #: the CUDA toolkit that compiled gkd, "" for a CPU-only build
cuda_architectures: str  #: the architectures in the library, "" for a CPU-only build
