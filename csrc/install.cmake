# What `cmake --install` copies: the C++ package, and as component "python" the same files laid out
# for the inside of the Python package. find_package(gkd) works with either.
include(CMakePackageConfigHelpers)

# libgkd.so finds torch and its libcudart beside the Python package (site-packages), or torch beside
# itself (an unpacked LibTorch). Elsewhere the program that links gkd::gkd names torch's folder.
set(GKD_RPATH "$ORIGIN/../torch/lib" "$ORIGIN")
if(GKD_TORCH_CUDA)
  string(REGEX MATCH "^[0-9]+" GKD_CUDA_MAJOR "${GKD_TORCH_CUDA}")
  list(APPEND GKD_RPATH "$ORIGIN/../nvidia/cu${GKD_CUDA_MAJOR}/lib")
endif()
set_target_properties(gkd PROPERTIES EXPORT_NAME library INSTALL_RPATH "${GKD_RPATH}")

configure_file(csrc/gkdConfig.cmake.in gkdConfig.cmake @ONLY)
# 0.x: the minor number may change what a caller sees.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/gkdConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)

# gkd_install(<export set> <folder of the library> <folder of the CMake files> [install options])
function(gkd_install targets library cmake)
  install(TARGETS gkd EXPORT ${targets} LIBRARY DESTINATION ${library} ${ARGN})
  install(EXPORT ${targets} FILE gkdTargets.cmake NAMESPACE gkd:: DESTINATION ${cmake} ${ARGN})
  install(FILES "${PROJECT_BINARY_DIR}/gkdConfig.cmake"
                "${PROJECT_BINARY_DIR}/gkdConfigVersion.cmake" DESTINATION ${cmake} ${ARGN})
  install(DIRECTORY csrc/include/gkd DESTINATION include ${ARGN} FILES_MATCHING PATTERN "*.h")
endfunction()
gkd_install(gkdTargets lib lib/cmake/gkd)
gkd_install(gkdPackageTargets . share/cmake/gkd COMPONENT python EXCLUDE_FROM_ALL)
