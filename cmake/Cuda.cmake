# The CUDA executor module: found, or left out.
#
# DYN_CUDA is AUTO (the module is built when nvcc is there), ON (it must be) or OFF. Afterwards DYN_CUDA_FOUND says whether
# it is built. The worker itself links nothing of CUDA; it is compiled the same either way.
set(DYN_CUDA OFF CACHE STRING "Build the CUDA executor module: AUTO, ON, OFF")
set_property(CACHE DYN_CUDA PROPERTY STRINGS AUTO ON OFF)

# What crosses the border to the module decides whether both are of one build.
set(DYN_EXECUTOR_BORDER
  "${CMAKE_SOURCE_DIR}/src/native/exec/executor_abi.h" "${CMAKE_SOURCE_DIR}/src/native/exec/cuda/kernels/sample_params.h")
set(_digests "")
foreach(_header IN LISTS DYN_EXECUTOR_BORDER)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${_header}")
  file(SHA256 "${_header}" _digest)
  string(APPEND _digests "${_digest}")
endforeach()
string(SHA256 _digest "${_digests}")
string(SUBSTRING "${_digest}" 0 16 _digest)
set(DYN_EXECUTOR_BUILD_ID "${PROJECT_VERSION}-${_digest}")

set(DYN_CUDA_FOUND OFF)
if(NOT DYN_CUDA STREQUAL "OFF" AND DYN_SANITIZE STREQUAL "")
  find_program(DYN_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(DYN_NVCC)
    set(CMAKE_CUDA_COMPILER "${DYN_NVCC}")
    # clang 19 is newer than what nvcc 13.0 accepts as a host compiler; the code it sees there is thin.
    find_program(DYN_NVCC_HOST NAMES g++-12 g++-13 g++ REQUIRED)
    set(CMAKE_CUDA_HOST_COMPILER "${DYN_NVCC_HOST}")
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # CMake 3.25 does not know 90a: -gencode says it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")  # nor C++20 of nvcc
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    if(CMAKE_CXX_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER "${CMAKE_CXX_COMPILER_LAUNCHER}")
    endif()
    # The project's linker flags are for clang; nvcc links nothing but CMake's own test.
    set(_linker_flags "${CMAKE_EXE_LINKER_FLAGS}")
    set(CMAKE_EXE_LINKER_FLAGS "")
    enable_language(CUDA)
    set(CMAKE_EXE_LINKER_FLAGS "${_linker_flags}")
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit REQUIRED)
    set(DYN_CUDA_FOUND ON)
  elseif(DYN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "DYN_CUDA is ON, but nvcc was not found (looked in PATH and /usr/local/cuda/bin)")
  endif()
endif()
if(DYN_CUDA_FOUND)
  message(STATUS "CUDA executor: built with ${CMAKE_CUDA_COMPILER}")
else()
  message(STATUS "CUDA executor: left out (DYN_CUDA=${DYN_CUDA})")
endif()
