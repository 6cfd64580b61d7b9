/* Images for visq-run: read from PPM or PNG, and made as large as a network wants them. */
#ifndef VISQ_EXAMPLE_IMAGE_H
#define VISQ_EXAMPLE_IMAGE_H

#include <stdint.h>

#include "visq.h"

typedef struct image {
  int width, height;
  uint8_t* pixels; /* [height][width][3], of malloc */
} image;

/* Reads a binary PPM (P6) or PGM (P5) of 8 bits, or a PNG where libpng is there. Returns NULL, or what is wrong. */
const char* read_image(const char* path, image* found);

/* Writes a PPM (3 channels) or PGM (1 channel) of 8 bits. Returns NULL, or what is wrong. */
const char* write_image(const char* path, int width, int height, int channels, const uint8_t* pixels);

/* Resizes the shorter side to `resize` pixels and cuts out the centre, pixel for pixel as visq's Python does with Pillow.
 * An image whose shorter side has that size is only cut. With `resize` 0 it must have the network's size. Returns NULL, or
 * what is wrong. */
const char* fit_image(image* picture, const visq_input* input);

#endif
