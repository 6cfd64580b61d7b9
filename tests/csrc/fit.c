/* Writes the pixels that visq-run makes of a PPM: fit FILE RESIZE SIZE CHANNELS BICUBIC. */
#include <stdio.h>
#include <stdlib.h>

#include "image.h"

int main(int argc, char** argv) {
  image picture;
  visq_input input = {0};
  const char* error;
  if (argc != 6) return 2;
  input.resize = atoi(argv[2]), input.height = input.width = atoi(argv[3]);
  input.channels = atoi(argv[4]), input.bicubic = atoi(argv[5]);
  error = read_image(argv[1], &picture);
  if (!error) error = fit_image(&picture, &input);
  if (error) return fprintf(stderr, "%s\n", error), 1;
  fwrite(picture.pixels, 3, (size_t)picture.width * (size_t)picture.height, stdout);
  free(picture.pixels);
  return 0;
}
