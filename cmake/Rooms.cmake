# One static library a room (a folder of src/), one test program a room.
#
#   dyn_room(wire
#     SOURCES json.cc msgpack.cc
#     ROOMS   base                     # other rooms it may use: the arrows
#     LIBS    PUBLIC x PRIVATE y       # third-party targets
#     TESTS   json_test.cc)
#
# makes the target dyn_wire (alias dyn::wire) and the program wire_test.

add_library(dyn_flags INTERFACE)
target_compile_options(dyn_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wconversion -Wno-sign-conversion
  -Wno-missing-designated-field-initializers  # naming the members that differ from their defaults is the point
  -fno-omit-frame-pointer)
if(DYN_WERROR)
  target_compile_options(dyn_flags INTERFACE -Werror)
endif()
target_include_directories(dyn_flags INTERFACE "${CMAKE_SOURCE_DIR}/src" "${CMAKE_SOURCE_DIR}/include")

if(DYN_SANITIZE STREQUAL "address")
  set(_san -fsanitize=address,undefined -fno-sanitize-recover=undefined)
  if(DYN_FUZZ)
    list(APPEND _san -fsanitize=fuzzer-no-link)
  endif()
elseif(DYN_SANITIZE STREQUAL "thread")
  set(_san -fsanitize=thread)
elseif(DYN_SANITIZE)
  message(FATAL_ERROR "DYN_SANITIZE: '${DYN_SANITIZE}' is none of: address, thread")
endif()
if(_san)
  add_compile_options(${_san})
  add_link_options(${_san})
endif()

function(dyn_room name)
  cmake_parse_arguments(PARSE_ARGV 1 ROOM "" "" "SOURCES;ROOMS;LIBS;TESTS;TEST_ROOMS;TEST_LIBS")
  set(target dyn_${name})
  add_library(${target} STATIC ${ROOM_SOURCES})
  add_library(dyn::${name} ALIAS ${target})
  target_link_libraries(${target} PUBLIC dyn_flags Threads::Threads)
  foreach(room IN LISTS ROOM_ROOMS)
    target_link_libraries(${target} PUBLIC dyn_${room})
  endforeach()
  if(ROOM_LIBS)
    target_link_libraries(${target} ${ROOM_LIBS})
  endif()
  if(DYN_TESTS AND ROOM_TESTS)
    add_executable(${name}_test ${ROOM_TESTS})
    target_link_libraries(${name}_test PRIVATE ${target} GTest::gtest GTest::gmock GTest::gtest_main ${ROOM_TEST_LIBS})
    foreach(room IN LISTS ROOM_TEST_ROOMS)
      target_link_libraries(${name}_test PRIVATE dyn_${room})
    endforeach()
    target_compile_definitions(${name}_test PRIVATE DYN_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    # One ctest entry a program: starting a process for each case costs more than the cases.
    add_test(NAME ${name} COMMAND ${name}_test --gtest_brief=1)
  endif()
endfunction()
