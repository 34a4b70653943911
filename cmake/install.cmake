# What `cmake --install` copies: the C++ package, and as component "python" the same files laid out
# for the inside of the Python package. find_package(gkd) works with either.
include(CMakePackageConfigHelpers)

# libgkd.so finds torch and its libcudart beside the Python package (site-packages), or torch beside
# itself (an unpacked LibTorch). Elsewhere the program that links gkd::gkd names torch's folder.
set(GKD_RPATH "$ORIGIN/../torch/lib" "$ORIGIN")
if(GKD_CUDA)
  # torch's libcudart from PyPI: one folder for all of CUDA 13, a folder of its own in CUDA 12.
  list(APPEND GKD_RPATH "$ORIGIN/../nvidia/cu${GKD_CUDA_MAJOR}/lib" "$ORIGIN/../nvidia/cuda_runtime/lib")
endif()
set_target_properties(gkd PROPERTIES EXPORT_NAME library INSTALL_RPATH "${GKD_RPATH}")

configure_file(cmake/gkdConfig.cmake.in gkdConfig.cmake @ONLY)
# 0.x: the minor number may change what a caller sees.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/gkdConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)

# gkd_install(<export set> <folder of the library> <folder of the CMake files> [install options])
function(gkd_install targets library cmake)
  install(TARGETS gkd EXPORT ${targets} LIBRARY DESTINATION ${library} ${ARGN})
  install(EXPORT ${targets} FILE gkdTargets.cmake NAMESPACE gkd:: DESTINATION ${cmake} ${ARGN})
  install(FILES "${PROJECT_BINARY_DIR}/gkdConfig.cmake"
                "${PROJECT_BINARY_DIR}/gkdConfigVersion.cmake" cmake/gkdTorch.cmake
          DESTINATION ${cmake} ${ARGN})
  install(DIRECTORY csrc/include/gkd DESTINATION include ${ARGN} FILES_MATCHING PATTERN "*.h")
endfunction()
gkd_install(gkdTargets lib lib/cmake/gkd)
gkd_install(gkdPackageTargets . share/cmake/gkd COMPONENT python EXCLUDE_FROM_ALL)
install(FILES ${PROJECT_BINARY_DIR}/_build.py DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
if(TARGET _C)
  install(TARGETS _C LIBRARY DESTINATION . COMPONENT python EXCLUDE_FROM_ALL)
endif()
