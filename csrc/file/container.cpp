#include "file/container.h"

#include <cstring>

namespace visq::file {
namespace {

constexpr size_t kChecksumWord = 3, kMostSections = 64;
constexpr uint32_t kAbout = 1, kProgram = 2, kTensors = 3;

struct Header {
  uint8_t magic[8];
  uint32_t endian_mark, version;
  uint64_t file_bytes, checksum;
  uint32_t sections, unused[7];
};
static_assert(sizeof(Header) == kAlign);

struct Entry {
  uint32_t kind, unused;
  uint64_t offset, bytes;
};
static_assert(sizeof(Entry) == 24);

[[noreturn]] void damaged(const std::string& what) { throw FileError(Fault::kDamaged, "the file is damaged: " + what); }

Section section(const Container& c, const Entry& entry, size_t least) {
  if (entry.offset % kAlign || entry.offset < least || entry.offset > c.bytes.size ||
      entry.bytes > c.bytes.size - entry.offset)
    damaged("section " + std::to_string(entry.kind) + " does not lie in its " + std::to_string(c.bytes.size) + " bytes");
  return {static_cast<size_t>(entry.offset), static_cast<size_t>(entry.bytes)};
}

}  // namespace

uint64_t checksum(const uint8_t* data, size_t size) {
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;
  const size_t words = size / 8;
  const auto value = [data](size_t word) {
    uint64_t found;
    std::memcpy(&found, data + 8 * word, 8);
    return found;
  };
  uint64_t sum = 0;
  for (size_t word = 0; word < words; ++word) sum += (value(word) + 1) * (2 * word + 1);
  if (words > kChecksumWord) sum -= value(kChecksumWord) * (2 * kChecksumWord + 1);
  return sum * kFactor;
}

Container open_container(Bytes bytes) {
  Container c = {bytes, {}, {}, {}};
  Header header;
  if (bytes.size < sizeof kMagic || std::memcmp(bytes.data, kMagic, sizeof kMagic))
    throw FileError(Fault::kNotVisq, "this is no file of visq: it does not start with visq's mark");
  if (bytes.size < sizeof header) damaged("it ends within its header");
  std::memcpy(&header, bytes.data, sizeof header);
  if (header.endian_mark != kEndianMark) {
    if (header.endian_mark == __builtin_bswap32(kEndianMark))
      throw FileError(Fault::kForeign, "the file's numbers have the other byte order; visq's files are little-endian");
    damaged("its byte order mark is neither order");
  }
  if (header.version != kVersion)
    throw FileError(header.version > kVersion ? Fault::kNewer : Fault::kOlder,
                    "the file has version " + std::to_string(header.version) + " of the format, this visq reads version " +
                        std::to_string(kVersion) + (header.version > kVersion ? "; take a newer visq" : "; export it again"));
  if (header.file_bytes != bytes.size)
    damaged("it has " + std::to_string(bytes.size) + " bytes, but should have " + std::to_string(header.file_bytes));
  if (bytes.size % kAlign) damaged("its size is no multiple of " + std::to_string(kAlign));
  if (header.checksum != checksum(bytes.data, bytes.size)) damaged("its checksum is another one");
  const size_t table = sizeof header, entries = header.sections;
  if (entries > kMostSections || table + entries * sizeof(Entry) > bytes.size) damaged("its table of sections is cut off");
  bool found[4] = {};
  for (size_t i = 0; i < entries; ++i) {
    Entry entry;
    std::memcpy(&entry, bytes.data + table + i * sizeof entry, sizeof entry);
    if (entry.kind < kAbout || entry.kind > kTensors || found[entry.kind])
      damaged("section " + std::to_string(entry.kind) + " is unknown, or there twice");
    found[entry.kind] = true;
    (entry.kind == kAbout ? c.about : entry.kind == kProgram ? c.program : c.tensors) =
        section(c, entry, table + entries * sizeof entry);
  }
  if (!found[kAbout] || !found[kProgram] || !found[kTensors]) damaged("a section is missing");
  return c;
}

}  // namespace visq::file
