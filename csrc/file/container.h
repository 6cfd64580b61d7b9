// The flat file's outer shape: a header, a table of sections, and their bytes. docs/deploy.md describes it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace visq::file {

// Bytes in memory. `owner` keeps them alive; whoever uses them longer than a call keeps a copy of it.
struct Bytes {
  const uint8_t* data;
  size_t size;
  std::shared_ptr<const void> owner;
};

enum class Fault { kNotVisq, kForeign, kOlder, kNewer, kDamaged };

// A file that cannot be used, in one sentence.
class FileError : public std::invalid_argument {
 public:
  FileError(Fault fault, const std::string& what) : std::invalid_argument(what), fault(fault) {}
  Fault fault;
};

constexpr uint8_t kMagic[8] = {0x89, 'V', 'I', 'S', 'Q', '\r', '\n', 0x1a};
constexpr uint32_t kEndianMark = 0x01020304, kVersion = 1;
constexpr size_t kAlign = 64;  // of the header, of every section and tensor, and of the file's size

// Where a section lies. Offsets of tensors count from the file's start.
struct Section {
  size_t offset, size;
};

struct Container {
  Bytes bytes;
  Section about, program, tensors;
};

// The sum over all 64-bit words of (word + 1) * (2 * index + 1) * an odd constant, modulo 2^64. It sees every change of
// one or two bits. `size` is a multiple of 8; the word that holds the checksum counts as 0.
uint64_t checksum(const uint8_t* data, size_t size);

// Checks header, checksum and sections. Throws FileError.
Container open_container(Bytes bytes);

}  // namespace visq::file
