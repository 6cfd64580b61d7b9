/* visq.h for JavaScript: no 64-bit numbers, one network at a time in the arguments, and images of any size. */
#include <stdlib.h>
#include <string.h>

#include "../example/image.h"
#include "visq.h"

#define WEB_API __attribute__((used, visibility("default")))

/* Opens a file's bytes; returns the net, or 0. visq_error says what was wrong. */
WEB_API uint32_t web_open(const uint8_t* bytes, size_t size, const char* level) {
  const visq_options options = {level && *level ? level : NULL};
  visq_net net = 0;
  return visq_open_memory(bytes, size, &options, &net) ? 0 : (uint32_t)net;
}

WEB_API int web_size(uint32_t net) {
  visq_output output;
  return visq_output_info(net, &output) ? 0 : (int)output.size;
}

WEB_API int web_side(uint32_t net) {
  visq_input input;
  return visq_input_info(net, &input) ? 0 : (int)input.height;
}

WEB_API int web_text(uint32_t net, const char* key, char* text, size_t size) { return visq_text(net, key, text, size); }

WEB_API int web_class(uint32_t net, int index, char* text, size_t size) {
  return visq_class_name(net, index, text, size);
}

/* Resizes and crops pixels [height][width][4], RGBA, of which it takes RGB, to [side][side][3] as visq's Python does.
 * Returns NULL, or what is wrong. */
WEB_API const char* web_fit(uint32_t net, const uint8_t* rgba, int width, int height, uint8_t* out) {
  visq_input input;
  image picture = {width, height, NULL};
  const size_t count = (size_t)width * (size_t)height;
  const char* error;
  if (visq_input_info(net, &input)) return visq_error();
  picture.pixels = malloc(3 * count);
  if (!picture.pixels) return "there is not enough memory";
  for (size_t p = 0; p < count; ++p) memcpy(picture.pixels + 3 * p, rgba + 4 * p, 3);
  error = fit_image(&picture, &input);
  if (!error) memcpy(out, picture.pixels, (size_t)(3 * input.height * input.width));
  free(picture.pixels);
  return error;
}

/* Runs one image of [side][side][3]. */
WEB_API int web_run(uint32_t net, const uint8_t* pixels, int side, float* logits, size_t count) {
  return visq_run_rgb8(net, pixels, 1, side, side, logits, count, 1);
}

WEB_API int web_close(uint32_t net) { return visq_close(net); }

WEB_API const char* web_error(void) { return visq_error(); }
