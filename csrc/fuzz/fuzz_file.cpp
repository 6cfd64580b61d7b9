// Fuzzes visq_open_memory and visq_run: whatever bytes a file has, it is an error or a network that runs.
//
// Size and checksum of every input are made right first, so that what lies behind them is reached. Most changes keep the
// file's records whole and change, remove, repeat or exchange them, so that the program's own checks are reached too.
#include <algorithm>
#include <random>

#include "file/container.h"
#include "fuzz/records.h"
#include "visq.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace {

using namespace visq::fuzz;

constexpr size_t kMostBytes = 1 << 20, kFileSize = 16, kChecksum = 24, kHeader = 64;
constexpr int64_t kMostFloats = 1 << 14;
constexpr uint32_t kAbout = 1, kProgram = 2;

void mend(std::vector<uint8_t>& file) {
  file.resize((file.size() + kHeader - 1) / kHeader * kHeader);
  if (file.size() < kHeader) return;
  put<uint64_t>(file.data(), kFileSize, file.size());
  put<uint64_t>(file.data(), kChecksum, visq::file::checksum(file.data(), file.size()));
}

class Change {
 public:
  Change(uint8_t* data, size_t size, unsigned seed) : data_(data), size_(size), random_(seed) {}

  // Whether there was something to change.
  bool make() {
    const Span section = find_section(data_, size_, below(8) ? kProgram : kAbout);
    const std::vector<Record> records = find_records(data_, section);
    if (records.empty()) return false;
    const Record& one = records[below(records.size())];
    switch (below(16)) {
      case 0: return remove(section, one);
      case 1: return repeat(section, one, records[below(records.size())].at);
      case 2: return exchange(one, records[below(records.size())]);
      default: break;
    }
    if (one.arguments.empty()) return false;
    const Argument& argument = one.arguments[below(one.arguments.size())];
    switch (argument.tag) {
      case 'i': return integer(argument.at);
      case 'f': return number(argument.at);
      case 's': return LLVMFuzzerMutate(data_ + argument.at, 4, 4) > 0;
      default: return array(argument, records);
    }
  }

 private:
  size_t below(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  bool integer(size_t at) {
    constexpr int64_t kEdges[] = {0,       1,         -1,        2,         15,        16,        17,       255,
                                  256,     32767,     32768,     INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, 1 << 20,
                                  1 << 30, int64_t{1} << 32, int64_t{1} << 40};
    const int64_t value = get<int64_t>(data_, at);
    switch (below(4)) {
      case 0: put(data_, at, kEdges[below(std::size(kEdges))]); break;
      case 1: LLVMFuzzerMutate(data_ + at, 8, 8); break;
      default: put(data_, at, static_cast<int64_t>(static_cast<uint64_t>(value) + below(9) - 4)); break;
    }
    return true;
  }

  bool number(size_t at) {
    constexpr float kEdges[] = {0.0f, -0.0f, 1e-45f, 1e-38f, 1e38f, __builtin_inff(), -__builtin_inff(), __builtin_nanf("")};
    if (below(2)) put(data_, at, kEdges[below(std::size(kEdges))]);
    else LLVMFuzzerMutate(data_ + at, 4, 4);
    return true;
  }

  // The number of elements, where they lie, or one of them.
  bool array(const Argument& argument, const std::vector<Record>& records) {
    const uint64_t count = get<uint64_t>(data_, argument.at), offset = get<uint64_t>(data_, argument.at + 8);
    switch (below(4)) {
      case 0: return integer(argument.at);
      case 1: {
        std::vector<uint64_t> others = {offset + 64, offset - 64};
        for (const Record& record : records)
          for (const Argument& other : record.arguments)
            if (other.tag == argument.tag) others.push_back(get<uint64_t>(data_, other.at + 8));
        put(data_, argument.at + 8, others[below(others.size())]);
        return true;
      }
      default: break;
    }
    const size_t element = argument.tag == 'F' || argument.tag == 'I' ? 4 : argument.tag == 'H' ? 2 : 1;
    if (!count || offset > size_ || count > (size_ - offset) / element) return false;
    const size_t at = offset + below(count) * element;
    if (argument.tag == 'F') return number(at);
    return LLVMFuzzerMutate(data_ + at, element, element) > 0;
  }

  void resize(const Span& section, size_t bytes) { put<uint64_t>(data_, section.entry + 16, bytes); }

  bool remove(const Span& section, const Record& one) {
    std::memmove(data_ + one.at, data_ + one.at + one.bytes, section.offset + section.bytes - one.at - one.bytes);
    resize(section, section.bytes - one.bytes);
    return true;
  }

  // Puts a copy where another record begins; the tensors, which no record moves, begin behind.
  bool repeat(const Span& section, const Record& one, size_t at) {
    const Span next = find_section(data_, size_, get<uint32_t>(data_, section.entry) + 1);
    const size_t end = section.offset + section.bytes;
    if (!next.offset || next.offset < end || next.offset - end < one.bytes) return false;
    const std::vector<uint8_t> copy(data_ + one.at, data_ + one.at + one.bytes);
    std::memmove(data_ + at + one.bytes, data_ + at, end - at);
    std::copy(copy.begin(), copy.end(), data_ + at);
    resize(section, section.bytes + one.bytes);
    return true;
  }

  bool exchange(const Record& a, const Record& b) {
    if (a.at > b.at) return exchange(b, a);
    if (a.at == b.at) return false;
    const size_t between = b.at - a.at - a.bytes;
    std::rotate(data_ + a.at, data_ + b.at, data_ + b.at + b.bytes);
    // Now b, a, what was between: the last two change places.
    uint8_t* const rest = data_ + a.at + b.bytes;
    std::rotate(rest, rest + a.bytes, rest + a.bytes + between);
    return true;
  }

  uint8_t* data_;
  size_t size_;
  std::minstd_rand random_;
};

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  if (seed % 8 && Change(data, size, seed).make()) return size;
  return LLVMFuzzerMutate(data, size, most);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMostBytes) return 0;
  std::vector<uint8_t> file(data, data + size);
  mend(file);
  const visq_options options = {"scalar"};
  visq_net net;
  const visq_status status = visq_open_memory(file.data(), file.size(), &options, &net);
  if ((status == VISQ_OK) != (visq_error()[0] == 0) || status == VISQ_INTERNAL) __builtin_trap();
  if (status) return 0;
  visq_input input;
  visq_output output;
  if (visq_input_info(net, &input) || visq_output_info(net, &output)) __builtin_trap();
  const int64_t floats = input.channels * input.height * input.width;
  if (floats <= kMostFloats && output.size <= kMostFloats) {
    std::vector<float> image(static_cast<size_t>(floats), 0.5f), logits(static_cast<size_t>(output.size));
    const visq_status ran = visq_run(net, image.data(), 1, image.size(), logits.data(), logits.size(), 1);
    if (ran && ran != VISQ_NO_MEMORY) __builtin_trap();
  }
  if (visq_close(net)) __builtin_trap();
  return 0;
}
