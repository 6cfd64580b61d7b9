// The records of a flat file, where they lie: for changes that keep a file's shape.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace visq::fuzz {

struct Argument {
  size_t at;  // of the value, behind its tag
  char tag;
};

struct Record {
  size_t at, bytes;
  std::vector<Argument> arguments;
};

struct Span {
  size_t entry;  // of the table of sections; the size lies 16 bytes behind
  size_t offset, bytes;
};

template <class T>
T get(const uint8_t* data, size_t at) {
  T value;
  std::memcpy(&value, data + at, sizeof value);
  return value;
}

template <class T>
void put(uint8_t* data, size_t at, T value) {
  std::memcpy(data + at, &value, sizeof value);
}

// The section of this kind; without bytes where the file has none.
inline Span find_section(const uint8_t* data, size_t size, uint32_t kind) {
  for (size_t entry = 64; entry + 24 <= size && entry < 64 + 3 * 24; entry += 24) {
    const uint64_t offset = get<uint64_t>(data, entry + 8), bytes = get<uint64_t>(data, entry + 16);
    if (get<uint32_t>(data, entry) == kind && offset <= size && bytes <= size - offset) return {entry, offset, bytes};
  }
  return {0, 0, 0};
}

// The bytes of a value behind its tag; 0 for a tag that is none.
inline size_t value_bytes(const uint8_t* data, size_t size, size_t at, char tag) {
  switch (tag) {
    case 'i': return 8;
    case 'f': return 4;
    case 's': return at + 4 <= size ? 4 + size_t{get<uint32_t>(data, at)} : 0;
    case 'F': case 'I': case 'H': case 'B': case 'P': case 'N': return 16;
    default: return 0;
  }
}

// All records up to the first that is none.
inline std::vector<Record> find_records(const uint8_t* data, const Span& section) {
  std::vector<Record> found;
  const size_t end = section.offset + section.bytes;
  for (size_t at = section.offset; at + 2 < end;) {
    Record record = {at, 0, {}};
    size_t next = at + 1 + data[at];
    if (next >= end) break;
    bool whole = true;
    for (int left = data[next++]; left > 0 && whole; --left) {
      const char tag = next < end ? static_cast<char>(data[next]) : 0;
      const size_t bytes = value_bytes(data, end, next + 1, tag);
      whole = bytes && bytes < end && next + 1 <= end - bytes;
      if (whole) record.arguments.push_back({next + 1, tag}), next += 1 + bytes;
    }
    if (!whole) break;
    record.bytes = next - at;
    found.push_back(record);
    at = next;
  }
  return found;
}

}  // namespace visq::fuzz
