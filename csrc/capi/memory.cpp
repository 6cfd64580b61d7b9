// Files in memory: mapped where the system can, read otherwise.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "capi/network.h"

#if defined(__unix__) && !defined(__EMSCRIPTEN__)
#define VISQ_MAPS 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace visq::capi {
namespace {

[[noreturn]] void cannot(const char* path, const char* why) {
  throw Refused{VISQ_CANNOT_READ, std::string("cannot read ") + path + ": " + why};
}

std::shared_ptr<void> allocate(size_t size) {
  void* memory = std::aligned_alloc(file::kAlign, (size / file::kAlign + 1) * file::kAlign);
  if (!memory) throw std::bad_alloc();
  return {memory, std::free};
}

}  // namespace

file::Bytes copy_bytes(const void* bytes, size_t size) {
  // A size of a whole address space would overflow in allocate().
  if (size > SIZE_MAX / 2) throw std::bad_alloc();
  const std::shared_ptr<void> memory = allocate(size);
  std::memcpy(memory.get(), bytes, size);
  return {static_cast<const uint8_t*>(memory.get()), size, memory};
}

#if defined(VISQ_MAPS)
file::Bytes map_file(const char* path) {
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe that nobody writes to must not wait
  if (descriptor < 0) cannot(path, std::strerror(errno));
  struct Closer {
    int descriptor;
    ~Closer() { close(descriptor); }
  } closer{descriptor};
  struct stat status;
  if (fstat(descriptor, &status)) cannot(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) cannot(path, "it is no regular file");
  const size_t size = static_cast<size_t>(status.st_size);
  if (size == 0) throw file::FileError(file::Fault::kNotVisq, "this is no file of visq: it is empty");
  void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (memory == MAP_FAILED) errno == ENOMEM ? throw std::bad_alloc() : cannot(path, std::strerror(errno));
  return {static_cast<const uint8_t*>(memory), size,
          std::shared_ptr<void>(memory, [size](void* mapped) { munmap(mapped, size); })};
}
#else
file::Bytes map_file(const char* path) {
  std::FILE* stream = std::fopen(path, "rb");
  if (!stream) cannot(path, std::strerror(errno));
  const std::shared_ptr<std::FILE> closer(stream, std::fclose);
  if (std::fseek(stream, 0, SEEK_END)) cannot(path, std::strerror(errno));
  const long size = std::ftell(stream);
  if (size < 0 || std::fseek(stream, 0, SEEK_SET)) cannot(path, std::strerror(errno));
  const std::shared_ptr<void> memory = allocate(static_cast<size_t>(size));
  if (std::fread(memory.get(), 1, static_cast<size_t>(size), stream) != static_cast<size_t>(size))
    cannot(path, "it ended early");
  return {static_cast<const uint8_t*>(memory.get()), static_cast<size_t>(size), memory};
}
#endif

}  // namespace visq::capi
