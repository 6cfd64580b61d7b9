// The functions of visq.h: nets by number, and every exception as an error code and a sentence.
#include <cstring>
#include <map>
#include <new>

#include "capi/network.h"
#include "run/fork.h"

namespace visq::capi {
namespace {

thread_local char last_error[1024] = "";

visq_status fail(visq_status status, const char* what) noexcept {
  std::strncpy(last_error, what, sizeof last_error - 1);
  return status;
}

// Fails with a sentence that may quote a damaged file: bytes that do not print become question marks.
visq_status fail_plainly(visq_status status, const char* what) noexcept {
  fail(status, what);
  for (char* c = last_error; *c; ++c)
    if (*c < ' ' || *c > '~') *c = '?';
  return status;
}

visq_status status_of(file::Fault fault) {
  switch (fault) {
    case file::Fault::kNotVisq: return VISQ_NOT_VISQ;
    case file::Fault::kForeign: return VISQ_FOREIGN;
    case file::Fault::kOlder: return VISQ_OLDER;
    case file::Fault::kNewer: return VISQ_NEWER;
    case file::Fault::kDamaged: break;
  }
  return VISQ_DAMAGED;
}

// Open nets by number. A number is never used twice, so a closed one cannot mean another net.
struct Nets {
  ForkMutex mutex;
  std::map<visq_net, std::shared_ptr<Network>> open;
  visq_net last = 0;

  static Nets& get() {
    static Nets* const instance = new Nets;  // never destroyed: threads may outlive static objects
    return *instance;
  }
};

std::shared_ptr<Network> find(visq_net net) {
  Nets& nets = Nets::get();
  const std::lock_guard<ForkMutex> lock(nets.mutex);
  const auto found = nets.open.find(net);
  if (found == nets.open.end()) throw Refused{VISQ_CLOSED, "net " + std::to_string(net) + " is not open"};
  return found->second;
}

void need(bool right, const char* what) {
  if (!right) throw Refused{VISQ_BAD_ARGUMENT, what};
}

// Runs a function of the library's.
template <class F>
visq_status guarded(const F& body) noexcept {
  last_error[0] = 0;
  try {
    body();
    return VISQ_OK;
  } catch (const Refused& refused) {
    return fail(refused.status, refused.what.c_str());
  } catch (const file::FileError& error) {
    return fail_plainly(status_of(error.fault), error.what());
  } catch (const engine::OutOfMemory& error) {
    return fail(VISQ_NO_MEMORY, error.what());
  } catch (const std::bad_alloc&) {
    return fail(VISQ_NO_MEMORY, "there is not enough memory");
  } catch (const std::length_error&) {
    return fail(VISQ_NO_MEMORY, "there is not enough memory");
  } catch (const std::invalid_argument& error) {
    return fail_plainly(VISQ_DAMAGED, error.what());
  } catch (const std::exception& error) {
    return fail(VISQ_INTERNAL, error.what());
  } catch (...) {
    return fail(VISQ_INTERNAL, "an unknown exception");
  }
}

void add(const file::Bytes& bytes, const visq_options* options, visq_net* net) {
  auto made = std::make_shared<Network>(bytes, options ? options->level : nullptr);
  Nets& nets = Nets::get();
  const std::lock_guard<ForkMutex> lock(nets.mutex);
  nets.open[nets.last + 1] = std::move(made);
  *net = ++nets.last;
}

void put(const std::string& from, char* text, size_t size) {
  need(text && size, "there is no room for a text");
  const size_t length = from.size() < size - 1 ? from.size() : size - 1;
  std::memcpy(text, from.data(), length);
  text[length] = 0;
}

}  // namespace
}  // namespace visq::capi

using namespace visq;
using namespace visq::capi;

extern "C" {

visq_status visq_open(const char* path, const visq_options* options, visq_net* net) {
  return guarded([&] {
    need(path && net, "path or net is NULL");
    *net = 0;
    add(map_file(path), options, net);
  });
}

visq_status visq_open_memory(const void* bytes, size_t size, const visq_options* options, visq_net* net) {
  return guarded([&] {
    need(bytes && net, "bytes or net is NULL");
    *net = 0;
    add(copy_bytes(bytes, size), options, net);
  });
}

visq_status visq_input_info(visq_net net, visq_input* info) {
  return guarded([&] {
    need(info, "info is NULL");
    const auto found = find(net);
    const file::About& about = found->about();
    *info = visq_input{};
    info->channels = about.channels, info->resize = about.resize;
    info->height = found->engine().height(), info->width = found->engine().width();
    info->bicubic = about.interpolation == "bicubic";
    for (int64_t c = 0; c < about.channels; ++c) info->mean[c] = about.mean[c], info->std[c] = about.std[c];
  });
}

visq_status visq_output_info(visq_net net, visq_output* info) {
  return guarded([&] {
    need(info, "info is NULL");
    const auto found = find(net);
    const auto [channels, height, width] = found->engine().output_map();
    *info = {found->engine().output_floats(), static_cast<int64_t>(found->about().classes.size()), channels, height, width};
  });
}

visq_status visq_class_name(visq_net net, int64_t index, char* text, size_t size) {
  return guarded([&] {
    const auto found = find(net);
    const auto& classes = found->about().classes;
    need(index >= 0 && static_cast<uint64_t>(index) < classes.size(), "there is no class of this number with a name");
    put(classes[static_cast<size_t>(index)], text, size);
  });
}

visq_status visq_text(visq_net net, const char* key, char* text, size_t size) {
  return guarded([&] {
    need(key, "key is NULL");
    const auto found = find(net);
    const file::About& about = found->about();
    const std::string name = key;
    need(name == "model" || name == "recipe" || name == "version" || name == "level", "there is no text of this key");
    put(name == "model"     ? about.model
        : name == "recipe"  ? about.recipe
        : name == "version" ? about.version
                            : found->engine().isa(),
        text, size);
  });
}

visq_status visq_run_rgb8(visq_net net, const uint8_t* pixels, int64_t batch, int64_t height, int64_t width,
                          float* logits, size_t count, int32_t threads) {
  return guarded([&] {
    const auto found = find(net);
    need(pixels && logits, "pixels or logits is NULL");
    found->run_rgb8(pixels, batch, height, width, logits, count, threads);
  });
}

visq_status visq_run(visq_net net, const float* images, int64_t batch, size_t floats, float* logits, size_t count,
                     int32_t threads) {
  return guarded([&] {
    const auto found = find(net);
    need(images && logits, "images or logits is NULL");
    found->run(images, batch, floats, logits, count, threads);
  });
}

visq_status visq_close(visq_net net) {
  return guarded([&] {
    std::shared_ptr<Network> last;  // destroyed after the lock
    Nets& nets = Nets::get();
    const std::lock_guard<ForkMutex> lock(nets.mutex);
    const auto found = nets.open.find(net);
    if (found == nets.open.end()) throw Refused{VISQ_CLOSED, "net " + std::to_string(net) + " is not open"};
    last = std::move(found->second);
    nets.open.erase(found);
  });
}

const char* visq_error(void) { return last_error; }

const char* visq_version(void) { return VISQ_VERSION; }

}  // extern "C"
