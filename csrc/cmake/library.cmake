# libvisq.a, libvisq.so and visq-run, and what finds them: a CMake package and a pkg-config file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

visq_objects(visq_capi capi/capi.cpp capi/memory.cpp capi/network.cpp)
target_include_directories(visq_capi PRIVATE include)
target_compile_definitions(visq_capi PRIVATE VISQ_VERSION="${PROJECT_VERSION}")

get_property(engine GLOBAL PROPERTY VISQ_engine_OBJECTS)
set(objects $<TARGET_OBJECTS:visq_capi>)
foreach(part ${engine})
  list(APPEND objects $<TARGET_OBJECTS:${part}>)
endforeach()

add_library(visq_static STATIC ${objects})
add_library(visq_shared SHARED ${objects})
set_target_properties(visq_static visq_shared PROPERTIES OUTPUT_NAME visq LINKER_LANGUAGE CXX)
set_target_properties(visq_static PROPERTIES EXPORT_NAME static)
set_target_properties(visq_shared PROPERTIES EXPORT_NAME visq VERSION ${PROJECT_VERSION} SOVERSION 0)
foreach(library visq_static visq_shared)
  target_include_directories(${library} INTERFACE $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${library} PRIVATE Threads::Threads)
  target_link_options(${library} PRIVATE ${VISQ_LINK})
endforeach()
# Only visq_* leaves the shared library. Its threads live as long as the process, so it is never unloaded.
if(UNIX AND NOT APPLE AND NOT EMSCRIPTEN)
  target_link_options(visq_shared PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/capi/exports.map
    -Wl,--gc-sections -Wl,-z,nodelete)
  set_target_properties(visq_shared PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/capi/exports.map)
endif()

# visq-run, in C. PNG where libpng is installed, PPM always.
enable_language(C)
add_executable(visq-run example/visq_run.c example/image.c)
set_target_properties(visq-run PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF)
target_compile_options(visq-run PRIVATE -O2 -Wall -Wextra -Wpedantic)
target_compile_definitions(visq-run PRIVATE _POSIX_C_SOURCE=199309L)
target_link_libraries(visq-run PRIVATE visq_shared m)
find_package(PNG QUIET)
if(PNG_FOUND)
  target_link_libraries(visq-run PRIVATE PNG::PNG)
  target_compile_definitions(visq-run PRIVATE VISQ_HAS_PNG)
endif()
set_target_properties(visq-run PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")

install(TARGETS visq_static visq_shared EXPORT visq)
install(TARGETS visq-run)
install(FILES include/visq.h TYPE INCLUDE)
install(EXPORT visq NAMESPACE visq:: FILE visqTargets.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/visq)
configure_package_config_file(cmake/visqConfig.cmake.in visqConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/visq)
write_basic_package_version_file(visqConfigVersion.cmake COMPATIBILITY SameMinorVersion)
configure_file(cmake/visq.pc.in visq.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/visqConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/visqConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/visq)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/visq.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
