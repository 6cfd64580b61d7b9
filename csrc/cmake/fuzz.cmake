# fuzz-file: libFuzzer over everything between a file and its logits, with AddressSanitizer and UndefinedBehaviorSanitizer.
# Needs Clang; tools/fuzz.py builds and runs it.
set(fuzzed -O1 -g1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
get_property(engine GLOBAL PROPERTY VISQ_engine_OBJECTS)
visq_objects(visq_fuzzed capi/capi.cpp capi/memory.cpp capi/network.cpp fuzz/fuzz_file.cpp)
target_include_directories(visq_fuzzed PRIVATE include)
target_compile_definitions(visq_fuzzed PRIVATE VISQ_VERSION="${PROJECT_VERSION}")
set(objects)
# A file may ask for as much memory as the machine has, which would be a finding of the fuzzer's.
set_property(SOURCE program/phases.cpp run/run.cpp APPEND PROPERTY COMPILE_DEFINITIONS VISQ_MACHINE_MEMORY=1073741824)
foreach(part visq_fuzzed ${engine})
  target_compile_options(${part} PRIVATE ${fuzzed})
  list(APPEND objects $<TARGET_OBJECTS:${part}>)
endforeach()
add_executable(fuzz-file ${objects})
set_target_properties(fuzz-file PROPERTIES LINKER_LANGUAGE CXX)
target_link_libraries(fuzz-file PRIVATE Threads::Threads)
target_link_options(fuzz-file PRIVATE -fsanitize=fuzzer,address,undefined)
