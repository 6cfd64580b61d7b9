#include "file/loader.h"

#include <cmath>
#include <tuple>
#include <type_traits>

#include "file/arguments.h"

namespace visq::file {
namespace {

using engine::Engine;

// Reads what a method of the engine takes, and calls it.
template <class R, class... A>
void call(Engine& e, R (Engine::*method)(A...), Arguments& from) {
  std::tuple<std::decay_t<A>...> values{};
  std::apply([&](auto&... value) { (from.read(value), ...); }, values);
  from.end();
  std::apply([&](auto&... value) { (e.*method)(value...); }, values);
}

struct Call {
  const char* name;
  void (*run)(Engine&, Arguments&);
};

// A record has the name and the arguments of a method (csrc/program/engine.h).
#define VISQ_CALL(name) {#name, [](Engine& e, Arguments& from) { call(e, &Engine::name, from); }}
constexpr Call kCalls[] = {
    VISQ_CALL(add_codec), VISQ_CALL(add_tensor), VISQ_CALL(map), VISQ_CALL(windows),
    VISQ_CALL(patches), VISQ_CALL(transpose), VISQ_CALL(pixel_shuffle), VISQ_CALL(bilinear), VISQ_CALL(average_pool),
    VISQ_CALL(enter_windows), VISQ_CALL(leave_windows), VISQ_CALL(sample), VISQ_CALL(merge_samples), VISQ_CALL(mean),
    VISQ_CALL(concat), VISQ_CALL(concat_part),
    VISQ_CALL(rows), VISQ_CALL(wide_linear), VISQ_CALL(int_linear), VISQ_CALL(float_linear),
    VISQ_CALL(int_conv), VISQ_CALL(float_conv), VISQ_CALL(reach), VISQ_CALL(int_conv2d), VISQ_CALL(float_conv2d),
    VISQ_CALL(fixed_scan), VISQ_CALL(fused_scan), VISQ_CALL(ladder_scan), VISQ_CALL(float_scan), VISQ_CALL(sequences),
    VISQ_CALL(int_attention), VISQ_CALL(float_attention), VISQ_CALL(join),
    VISQ_CALL(load), VISQ_CALL(slice), VISQ_CALL(unary), VISQ_CALL(binary), VISQ_CALL(append), VISQ_CALL(turn), VISQ_CALL(with_constant),
    VISQ_CALL(mul_scalar), VISQ_CALL(rms_norm), VISQ_CALL(layer_norm), VISQ_CALL(round), VISQ_CALL(rotate),
    VISQ_CALL(store), VISQ_CALL(whole_output), VISQ_CALL(finish),
};
#undef VISQ_CALL

const Call* find_call(const std::string& name) {
  for (const Call& one : kCalls)
    if (name == one.name) return &one;
  return nullptr;
}

void read_normalization(Arguments& from, About& about) {
  Array<float> mean, std;
  from.read(mean), from.read(std);
  if (mean.size != about.channels || std.size != about.channels) from.fail("it is for another number of channels");
  for (int64_t c = 0; c < mean.size; ++c) {
    if (!std::isfinite(mean.at(c)) || !std::isfinite(std.at(c)) || std.at(c) <= 0) from.fail("its numbers make no sense");
    about.mean.push_back(mean.at(c)), about.std.push_back(std.at(c));
  }
}

}  // namespace

std::unique_ptr<Engine> load_engine(const Container& container, const std::string& level) {
  Arguments records(container, container.program, "program");
  if (!records.next() || records.name() != "input") records.fail("its first record is not \"input\"");
  int64_t channels, height, width;
  records.read(channels), records.read(height);
  width = height;  // one number for a square
  if (records.left()) records.read(width);
  records.end();
  auto made = std::make_unique<Engine>(level, channels, height, width);
  made->keep(container.bytes.owner);
  while (records.next()) {
    const Call* one = find_call(records.name());
    if (!one) records.fail("there is no such record");
    one->run(*made, records);
  }
  if (!made->finished()) records.fail("the program has no end");
  return made;
}

About load_about(const Container& container) {
  About about;
  Arguments records(container, container.about, "about");
  while (records.next()) {
    const std::string& name = records.name();
    if (name == "image") {
      records.read(about.channels), records.read(about.size), records.read(about.resize);
      records.read(about.interpolation);
      if (about.channels < 1 || about.size < 1 || (about.resize && about.resize < about.size) || about.resize > engine::kMaxSize)
        records.fail("its sizes make no sense");
    } else if (name == "normalize") {
      read_normalization(records, about);
    } else if (name == "class") {
      about.classes.emplace_back();
      records.read(about.classes.back());
    } else if (name == "names") {
      records.read(about.model), records.read(about.recipe), records.read(about.version);
    } else {
      records.fail("there is no such record");
    }
    records.end();
  }
  if (about.mean.empty()) records.fail("it does not say how an image becomes input");
  return about;
}

}  // namespace visq::file
