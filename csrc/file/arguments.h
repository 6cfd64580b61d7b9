// Records: a name and its arguments, each with a tag that says its type. Sections `about` and `program` are lists of them.
#pragma once
#include <string>

#include "file/container.h"
#include "program/engine.h"

namespace visq::file {

using engine::Array;

// Reads the records of one section, from the first to the last. Everything throws FileError where it does not fit.
class Arguments {
 public:
  Arguments(const Container& container, Section section, const char* section_name);

  // Goes to the next record; false after the last one.
  bool next();
  const std::string& name() const { return name_; }

  // The next argument of the record at hand.
  void read(int64_t& value);
  void read(int& value);
  void read(bool& value);
  void read(float& value);
  void read(std::string& value);
  template <class T>
  void read(Array<T>& value);
  void read(engine::Panels& value);
  void read(engine::ScanNumbers& value);
  void read(engine::ScanArrays& value);
  void read(engine::ExponentArrays& value);
  void read(engine::FactorArrays& value);
  // How many arguments of the record are not read yet.
  int left() const { return count_ - taken_; }
  // After the last argument.
  void end() const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  template <class T>
  T raw();
  const uint8_t* take(size_t bytes);
  char tag(const char* wanted);
  const uint8_t* tensor(int64_t& count, size_t element);

  const Container& container_;
  const char* section_name_;
  size_t at_, end_;
  int64_t record_ = -1;
  int count_ = 0, taken_ = 0;  // arguments of the record
  std::string name_;
};

}  // namespace visq::file
