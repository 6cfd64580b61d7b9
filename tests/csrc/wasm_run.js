// Runs images through the library that emscripten compiled: node wasm_run.js visq-web.js NET PIXELS LEVEL...
// PIXELS: images of the network's size, RGB, 8 bits. Writes for each level the logits of each image, float32.
const fs = require("fs");
const path = require("path");

const [glue, file, images, ...levels] = process.argv.slice(2);
const wasmBinary = fs.readFileSync(glue.replace(/\.js$/, ".wasm"));

require(path.resolve(glue))({ wasmBinary }).then((module) => {
  const put = (bytes) => {
    const at = module._malloc(bytes.length);
    module.HEAPU8.set(bytes, at);
    return at;
  };
  const text = (value) => put(Buffer.from(value + "\0"));
  const fail = () => {
    console.error(module.UTF8ToString(module._web_error()));
    process.exit(1);
  };
  const network = fs.readFileSync(file);
  const pixels = fs.readFileSync(images);
  for (const level of levels) {
    const net = module._web_open(put(network), network.length, text(level));
    if (!net) fail();
    const [side, size] = [module._web_side(net), module._web_size(net)];
    const each = side * side * 3;
    const logits = module._malloc(4 * size);
    for (let first = 0; first < pixels.length; first += each) {
      if (module._web_run(net, put(pixels.subarray(first, first + each)), side, logits, size)) fail();
      fs.writeSync(1, module.HEAPU8.slice(logits, logits + 4 * size));
    }
    if (module._web_close(net)) fail();
  }
});
