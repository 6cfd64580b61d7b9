# visq-web.js and visq-web.wasm: the library for a browser. src/visq/web puts both into a page.
#
#     emcmake cmake -S csrc -B build && cmake --build build
enable_language(C)
visq_objects(visq_web capi/capi.cpp capi/memory.cpp capi/network.cpp web/visq_web.c example/image.c)
target_include_directories(visq_web PRIVATE include)
target_compile_definitions(visq_web PRIVATE VISQ_VERSION="${PROJECT_VERSION}")
get_property(engine GLOBAL PROPERTY VISQ_engine_OBJECTS)
set(objects)
foreach(part visq_web ${engine})
  list(APPEND objects $<TARGET_OBJECTS:${part}>)
endforeach()
add_executable(visq-web ${objects})
set_target_properties(visq-web PROPERTIES LINKER_LANGUAGE CXX)
set(exports)
foreach(name open size side text class fit run close error)
  list(APPEND exports _web_${name})
endforeach()
list(JOIN exports "," exports)
# A page holds both, so each has a name of its own.
set(level wasm128)
if(VISQ_SCALAR_ONLY)
  set(level scalar)
endif()
target_link_options(visq-web PRIVATE -O2 -fexceptions -sMODULARIZE -sEXPORT_NAME=visq_${level}
  -sENVIRONMENT=web,node -sFILESYSTEM=0 -sALLOW_MEMORY_GROWTH -sMAXIMUM_MEMORY=2GB -sSTRICT -sDYNAMIC_EXECUTION=0
  "-sEXPORTED_FUNCTIONS=${exports},_malloc,_free" "-sEXPORTED_RUNTIME_METHODS=UTF8ToString,stringToUTF8,HEAPU8,HEAPF32")
