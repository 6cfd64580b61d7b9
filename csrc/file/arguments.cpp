#include "file/arguments.h"

#include <cstring>
#include <limits>

namespace visq::file {

Arguments::Arguments(const Container& container, Section section, const char* section_name)
    : container_(container), section_name_(section_name), at_(section.offset), end_(section.offset + section.size) {}

void Arguments::fail(const std::string& what) const {
  std::string where = std::string("the file is damaged: section ") + section_name_;
  if (record_ >= 0) where += ", record " + std::to_string(record_) + (name_.empty() ? "" : " (" + name_ + ")");
  throw FileError(Fault::kDamaged, where + ": " + what);
}

const uint8_t* Arguments::take(size_t bytes) {
  if (bytes > end_ - at_) fail("it ends beyond its section");
  const uint8_t* found = container_.bytes.data + at_;
  at_ += bytes;
  return found;
}

template <class T>
T Arguments::raw() {
  T value;
  std::memcpy(&value, take(sizeof value), sizeof value);
  return value;
}

bool Arguments::next() {
  if (at_ == end_) return false;
  ++record_, taken_ = 0, name_.clear();
  const size_t length = raw<uint8_t>();
  const uint8_t* text = take(length);
  name_.assign(reinterpret_cast<const char*>(text), length);
  for (char c : name_)
    if ((c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_') name_.clear(), fail("its name is none");
  count_ = raw<uint8_t>();
  return true;
}

char Arguments::tag(const char* wanted) {
  if (taken_ == count_) fail("it has only " + std::to_string(count_) + " arguments");
  ++taken_;
  const char found = raw<char>();
  if (!found || !std::strchr(wanted, found)) fail("argument " + std::to_string(taken_) + " has another type");
  return found;
}

void Arguments::end() const {
  if (taken_ != count_) fail("it has " + std::to_string(count_) + " arguments, not " + std::to_string(taken_));
}

void Arguments::read(int64_t& value) {
  tag("i");
  value = raw<int64_t>();
}

void Arguments::read(int& value) {
  int64_t wide;
  read(wide);
  if (wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<int>::max())
    fail("argument " + std::to_string(taken_) + " is beyond 32 bits");
  value = static_cast<int>(wide);
}

void Arguments::read(bool& value) {
  int64_t wide;
  read(wide);
  if (wide != 0 && wide != 1) fail("argument " + std::to_string(taken_) + " is neither 0 nor 1");
  value = wide == 1;
}

void Arguments::read(float& value) {
  tag("f");
  value = raw<float>();
}

void Arguments::read(std::string& value) {
  tag("s");
  const size_t length = raw<uint32_t>();
  const uint8_t* text = take(length);
  value.assign(reinterpret_cast<const char*>(text), length);
}

// Elements of the tensors' section, whose first is aligned.
const uint8_t* Arguments::tensor(int64_t& count, size_t element) {
  const uint64_t elements = raw<uint64_t>(), offset = raw<uint64_t>();
  const Section& room = container_.tensors;
  if (offset % kAlign || offset < room.offset || offset > room.offset + room.size ||
      elements > (room.offset + room.size - offset) / element)
    fail("argument " + std::to_string(taken_) + " lies outside of the tensors");
  count = static_cast<int64_t>(elements);
  return container_.bytes.data + offset;
}

template <class T>
void Arguments::read(Array<T>& value) {
  constexpr const char* kTag = std::is_same_v<T, float>     ? "F"
                               : std::is_same_v<T, int32_t> ? "I"
                               : std::is_same_v<T, int16_t> ? "H"
                                                            : "B";
  tag(kTag);
  value.data = reinterpret_cast<const T*>(tensor(value.size, sizeof(T)));
}
template void Arguments::read(Array<float>&);
template void Arguments::read(Array<int32_t>&);
template void Arguments::read(Array<int16_t>&);
template void Arguments::read(Array<int8_t>&);

void Arguments::read(engine::Panels& value) {
  value.nibbles = tag("PN") == 'N';
  value.data = reinterpret_cast<const int8_t*>(tensor(value.bytes, 1));
}

void Arguments::read(engine::ScanNumbers& s) {
  for (int* number : {&s.abar_fraction, &s.abar_high, &s.abar_bits, &s.bbar_low, &s.bbar_high, &s.bbar_bits,
                      &s.state_low, &s.state_high, &s.point})
    read(*number);
}

void Arguments::read(engine::ScanArrays& s) {
  for (Array<float>* array : {&s.input_channel, &s.y_channel, &s.beta_scale, &s.input_step, &s.y_step}) read(*array);
  read(s.lift);
}

void Arguments::read(engine::ExponentArrays& s) { read(s.shift), read(s.a), read(s.delta_scale); }

void Arguments::read(engine::FactorArrays& s) {
  read(s.kind);
  for (float* number : {&s.step, &s.inverse, &s.low, &s.high}) read(*number);
  read(s.table), read(s.thresholds);
}

}  // namespace visq::file
