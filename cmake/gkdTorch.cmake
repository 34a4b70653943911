# Finds torch for gkd and for its C++ users: target gkd::torch, torch's headers and libraries.
#
# torch's own find_package(Torch) is not used. Where torch has CUDA it asks every project for the CUDA
# toolkit, also one without a line of CUDA code, and torch 2.14's does not say that its headers are C++20.

set(GKD_TORCH_OLDEST 2.8)
set(GKD_TORCH_NEWEST 2.15)  # the newest that was tested; a newer one may work

# gkd_find_torch([hint...]): sets GKD_TORCH_ROOT and GKD_TORCH_VERSION; the root is "" where no torch
# is found. Looks into Torch_DIR, the hints and CMAKE_PREFIX_PATH, in this order. Each may be what Python
# prints for torch.utils.cmake_prefix_path, or the folder of torch or of an unpacked LibTorch.
macro(gkd_find_torch)
  set(GKD_TORCH_PLACES TorchConfigVersion.cmake PATH_SUFFIXES Torch share/cmake/Torch)
  find_file(GKD_TORCH_VERSION_FILE ${GKD_TORCH_PLACES} PATHS "${Torch_DIR}" ${ARGN} NO_DEFAULT_PATH)
  find_file(GKD_TORCH_VERSION_FILE ${GKD_TORCH_PLACES})
  mark_as_advanced(GKD_TORCH_VERSION_FILE)
  set(GKD_TORCH_ROOT "")
  if(GKD_TORCH_VERSION_FILE)
    include("${GKD_TORCH_VERSION_FILE}")  # sets PACKAGE_VERSION
    string(REGEX MATCH "^[0-9.]*[0-9]" GKD_TORCH_VERSION "${PACKAGE_VERSION}")
    get_filename_component(GKD_TORCH_ROOT "${GKD_TORCH_VERSION_FILE}/../../../.." ABSOLUTE)
  endif()
endmacro()

# Makes gkd::torch of the torch that gkd_find_torch found.
function(gkd_add_torch)
  add_library(gkd::torch INTERFACE IMPORTED)
  set(include "${GKD_TORCH_ROOT}/include")
  target_include_directories(gkd::torch INTERFACE "${include}" "${include}/torch/csrc/api/include")
  foreach(name torch torch_cpu c10 c10_cuda)
    if(EXISTS "${GKD_TORCH_ROOT}/lib/lib${name}.so")
      target_link_libraries(gkd::torch INTERFACE "${GKD_TORCH_ROOT}/lib/lib${name}.so")
    endif()
  endforeach()
  if(GKD_TORCH_VERSION VERSION_LESS 2.14)
    target_compile_features(gkd::torch INTERFACE cxx_std_17)
  else()
    target_compile_features(gkd::torch INTERFACE cxx_std_20)
  endif()
endfunction()
