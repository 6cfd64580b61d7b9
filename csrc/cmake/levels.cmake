# The instruction sets of the kernels: one object library for each, from the same sources.

# -ffp-contract=off: a fused multiply-add only where the source says so, so that every level and the oracle round alike.
# No -ffast-math: NaN in must be NaN out.
set(VISQ_COMMON -O3 -Wall -Wextra -ffp-contract=off -fno-math-errno -fno-stack-protector -ffunction-sections
  -fdata-sections)
# Partial redundancy elimination (GCC 12) keeps a copy in memory of every accumulator of the engine's matrix products.
set(VISQ_ENGINE_FLAGS)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(VISQ_ENGINE_FLAGS -fno-tree-pre)
endif()

# C++ exceptions are off there unless they are asked for.
if(EMSCRIPTEN)
  list(APPEND VISQ_COMMON -fexceptions)
endif()

# VISQ_SANITIZE=address or thread: see tools/sanitize.py.
set(VISQ_SANITIZE "" CACHE STRING "sanitizers to build with: address (and undefined behaviour), or thread")
if(VISQ_SANITIZE STREQUAL "address")
  list(APPEND VISQ_COMMON -O1 -g1 -fno-var-tracking -fsanitize=address,undefined -fno-sanitize-recover=all)
  set(VISQ_LINK -fsanitize=address,undefined)
elseif(VISQ_SANITIZE STREQUAL "thread")
  list(APPEND VISQ_COMMON -O1 -g1 -fno-var-tracking -fsanitize=thread)
  set(VISQ_LINK -fsanitize=thread)
endif()

# visq_objects(<name> sources...): an object library that a shared library can take, every symbol hidden. What links it
# is compiled with the same options.
function(visq_objects name)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/..)
  target_compile_options(${name} PUBLIC ${VISQ_COMMON})
  target_link_options(${name} INTERFACE ${VISQ_LINK})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
endfunction()

# visq_kernels(<prefix> <level> <source> <lanes> flags...): compiles a source once more for a level, in a namespace named
# like the level and over the vectors of csrc/lanes/<lanes>.
function(visq_kernels prefix level source lanes)
  set(objects ${prefix}_${level})
  visq_objects(${objects} ${source})
  target_compile_definitions(${objects} PRIVATE VISQ_LEVEL=${level} VISQ_LANES="lanes/${lanes}")
  # A vector type as a template's argument loses attributes that nothing here needs.
  target_compile_options(${objects} PRIVATE -Wno-ignored-attributes ${ARGN})
  set_property(GLOBAL APPEND PROPERTY VISQ_${prefix}_OBJECTS ${objects})
endfunction()

# A level: its kernels of the engine, and unless ENGINE_ONLY of visq.ops. csrc/isa.cpp says which machines have it.
function(visq_level level)
  cmake_parse_arguments(LEVEL "ENGINE_ONLY" "" "FLAGS" ${ARGN})
  visq_kernels(engine ${level} kernels/engine_level.cpp ${level}.h ${LEVEL_FLAGS} ${VISQ_ENGINE_FLAGS})
  if(VISQ_OPS AND NOT LEVEL_ENGINE_ONLY)
    visq_kernels(ops ${level} ops/ops_level.cpp ${level}.h ${LEVEL_FLAGS})
  endif()
endfunction()

visq_level(scalar)
if(VISQ_TEST_LEVELS)
  # -O1: this level is there to be tested and to start ports from, and takes three times as long to compile at -O3.
  visq_level(portable ENGINE_ONLY FLAGS -O1)
  set_property(SOURCE isa.cpp APPEND PROPERTY COMPILE_DEFINITIONS VISQ_TEST_LEVELS)
endif()
if(VISQ_SCALAR_ONLY)
  set_property(SOURCE isa.cpp APPEND PROPERTY COMPILE_DEFINITIONS VISQ_SCALAR_ONLY)
elseif(EMSCRIPTEN)
  visq_level(wasm128 ENGINE_ONLY FLAGS -msimd128)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(avx2 -mavx2 -mfma)
  # GCC 12 warns about its own AVX-512 intrinsics.
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512
    -Wno-maybe-uninitialized -Wno-uninitialized)
  set(avx512vnni ${avx512} -mavx512vnni -mavx512vbmi2)
  visq_level(avx2 FLAGS ${avx2})
  visq_level(avx512 FLAGS ${avx512})
  visq_level(avx512vnni ENGINE_ONLY FLAGS ${avx512vnni})
  if(VISQ_TEST_LEVELS)
    visq_kernels(engine amx_emulated kernels/tiled_level.cpp amx_emulated.h ${avx512vnni} ${VISQ_ENGINE_FLAGS})
  endif()
  # The instructions of AMX are assembly in the source (csrc/lanes/amx.h), so the assembler must know them.
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles("int main() { __asm__ volatile(\"tdpbusd %tmm2, %tmm1, %tmm0\"); }" VISQ_HAS_AMX)
  if(VISQ_HAS_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")
    visq_kernels(engine amx kernels/tiled_level.cpp amx.h ${avx512vnni} ${VISQ_ENGINE_FLAGS})
    set_property(SOURCE isa.cpp APPEND PROPERTY COMPILE_DEFINITIONS VISQ_HAS_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  visq_level(neon ENGINE_ONLY)
  visq_level(neondot ENGINE_ONLY FLAGS -march=armv8.2-a+dotprod)
  visq_level(i8mm ENGINE_ONLY FLAGS -march=armv8.2-a+dotprod+i8mm)
endif()
