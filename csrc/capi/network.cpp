#include "capi/network.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "isa.h"

namespace visq::capi {
namespace {

constexpr float kLargestPixel = 65536;  // as in src/visq/integer/images.py
constexpr int64_t kMostImages = 1 << 24, kMostFloats = 1 << 30;  // their product is below 2^63

std::string chosen_level(const char* wanted) {
  const char* named = wanted ? wanted : std::getenv("VISQ_ISA");
  const std::string level = named && *named ? named : fastest_level();
  if (!engine_kernels(level))
    throw Refused{VISQ_NO_LEVEL, "the instruction set " + level + " is not available here; available: " + levels_here()};
  return level;
}

// Pillow's conversion of RGB to grey.
uint8_t grey(const uint8_t* rgb) {
  return static_cast<uint8_t>((19595u * rgb[0] + 38470u * rgb[1] + 7471u * rgb[2] + 0x8000u) >> 16);
}

}  // namespace

Network::Network(const file::Bytes& bytes, const char* level) {
  const std::string chosen = chosen_level(level);
  const file::Container container = file::open_container(bytes);
  about_ = file::load_about(container);
  engine_ = file::load_engine(container, chosen);
  const auto need = [](bool right, const char* what) {
    if (!right) throw file::FileError(file::Fault::kDamaged, std::string("the file is damaged: ") + what);
  };
  const auto map = engine_->output_map();
  need(about_.channels == engine_->channels() && about_.size == engine_->height() &&
           (about_.resize ? about_.size == engine_->width() : map[0] > 0),
       "its images are not its program's");
  need(about_.channels == 1 || about_.channels == 3, "its images are neither grey nor RGB");
  need(engine_->image_floats() <= kMostFloats, "its images are too large");
  need(map[0] * map[1] * map[2] == (map[0] ? engine_->output_floats() : 0), "the image it returns is none");
  need(about_.classes.empty() || static_cast<int64_t>(about_.classes.size()) == (map[0] ? map[0] : engine_->output_floats()),
       "it has another number of classes than logits");
}

void Network::need_room(int64_t batch, size_t count, int threads) const {
  if (batch < 0 || batch > kMostImages)
    throw Refused{VISQ_BAD_ARGUMENT, "batch is " + std::to_string(batch) + ", not 0 to " + std::to_string(kMostImages)};
  const size_t needed = static_cast<size_t>(batch * engine_->output_floats());
  if (count != needed)
    throw Refused{VISQ_BAD_ARGUMENT, "logits has " + std::to_string(count) + " floats, not " + std::to_string(needed)};
  if (threads < 1 || threads > engine::kMaxThreads)
    throw Refused{VISQ_BAD_ARGUMENT, "threads is " + std::to_string(threads) + ", not between 1 and " +
                                         std::to_string(engine::kMaxThreads)};
}

void Network::run(const float* images, int64_t batch, size_t floats, float* logits, size_t count, int threads) {
  need_room(batch, count, threads);
  const size_t needed = static_cast<size_t>(batch) * static_cast<size_t>(engine_->image_floats());
  if (floats != needed)
    throw Refused{VISQ_BAD_ARGUMENT, "images has " + std::to_string(floats) + " floats, not " + std::to_string(needed)};
  for (size_t i = 0; i < floats; ++i)
    if (!(std::fabs(images[i]) <= kLargestPixel))
      throw Refused{VISQ_BAD_ARGUMENT, "images holds a value that is NaN, Inf or beyond 65536; normalize pixels first"};
  if (batch) engine_->run(images, batch, logits, threads);
}

void Network::run_rgb8(const uint8_t* pixels, int64_t batch, int64_t height, int64_t width, float* logits, size_t count,
                       int threads) {
  need_room(batch, count, threads);
  const int64_t own_height = engine_->height(), own_width = engine_->width(), plane = own_height * own_width;
  const int64_t channels = about_.channels;
  if (height != own_height || width != own_width)
    throw Refused{VISQ_BAD_ARGUMENT, "images are " + std::to_string(width) + " x " + std::to_string(height) +
                                         " pixels, but the network takes " + std::to_string(own_width) + " x " +
                                         std::to_string(own_height)};
  std::vector<float> images(static_cast<size_t>(batch * channels * plane));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < channels; ++c) {
      float value[256];
      for (int x = 0; x < 256; ++x) value[x] = (static_cast<float>(x) / 255.0f - about_.mean[c]) / about_.std[c];
      const uint8_t* from = pixels + b * plane * 3;
      float* to = &images[static_cast<size_t>((b * channels + c) * plane)];
      for (int64_t i = 0; i < plane; ++i) to[i] = value[channels == 1 ? grey(from + 3 * i) : from[3 * i + c]];
    }
  if (batch) engine_->run(images.data(), batch, logits, threads);
}

}  // namespace visq::capi
