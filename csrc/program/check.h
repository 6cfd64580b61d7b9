// Refuses what does not fit. A message names the operation, its index, and the numbers.
#pragma once
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace visq::engine {

constexpr int64_t kMaxSize = 1 << 20;  // of a dimension
constexpr int kMaxThreads = 1024;

// Memory that this machine does not have.
struct OutOfMemory : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Used like an assertion: need(rows == 1, "has ", rows, " rows, not 1"). Throws std::invalid_argument.
class Check {
 public:
  // What is checked: "tensor 3", or an operation, or one of its instructions.
  explicit Check(const char* name, int64_t index = -1) : name_(name), index_(index) {}
  Check(const char* name, int64_t operation, int64_t instruction)
      : name_(name), operation_(operation), instruction_(instruction) {}

  template <class... Parts>
  void operator()(bool condition, const Parts&... parts) const {
    if (!condition) fail(parts...);
  }

  // A dimension.
  void size(const char* what, int64_t n) const {
    (*this)(n >= 1 && n <= kMaxSize, what, " is ", n, ", not between 1 and ", kMaxSize);
  }

  // An array that has one element for each of something.
  template <class Array>
  void count(const char* what, const Array& array, int64_t expected) const {
    (*this)(array.size == expected, what, " has ", array.size, " elements, not ", expected);
  }

  // As operator(), for memory.
  template <class... Parts>
  void memory(bool condition, const Parts&... parts) const {
    if (!condition) fail<OutOfMemory>(parts...);
  }

  template <class Error = std::invalid_argument, class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream text;
    if (instruction_ >= 0)
      text << "operation " << operation_ << ", instruction " << instruction_ << " (" << name_ << "): ";
    else if (operation_ >= 0)
      text << "operation " << operation_ << " (" << name_ << "): ";
    else if (index_ >= 0)
      text << name_ << ' ' << index_ << ": ";
    else
      text << name_ << ": ";
    (text << ... << parts);
    throw Error(text.str());
  }

 private:
  const char* name_;
  int64_t index_ = -1, operation_ = -1, instruction_ = -1;
};

}  // namespace visq::engine
