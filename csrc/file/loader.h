// The one way into the engine: from the bytes of a flat file to a program that is ready to run. Python writes such bytes as
// well (src/visq/native/flat_file.py).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "file/container.h"
#include "program/engine.h"

namespace visq::file {

// What a caller needs to know beside the program.
struct About {
  // Of an image: shorter side `resize`, then the centre size x size. With resize 0 it has the network's size, and `size` is
  // its height.
  int64_t channels = 0, size = 0, resize = 0;
  std::string interpolation, model, recipe, version;
  std::vector<float> mean, std;  // by channel, of pixels / 255
  std::vector<std::string> classes;  // one for each logit, or none
};

// Calls the engine's builder for every record of the program. The engine keeps `bytes.owner` and reads weights in place.
// Throws FileError, or std::invalid_argument where the program does not fit itself or the machine lacks the level.
std::unique_ptr<engine::Engine> load_engine(const Container& container, const std::string& level);

// Throws FileError, also where the section is empty: Python writes none for the programs that it runs itself.
About load_about(const Container& container);

}  // namespace visq::file
