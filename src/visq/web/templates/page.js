// The page: pictures in, the answers of every network out. `visqPage` is what a console or a test takes hold of.
"use strict";
const visqPage = (() => {
  const TOP = 5;
  const MOST_RUNS = 80;
  const MOST_MILLISECONDS = 400;
  // A module whose one function returns a vector: it is valid where SIMD128 is known.
  const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  const find = (id) => document.getElementById(id);
  const say = (text) => { find("status").textContent = text; };
  const page = { state: "starting", level: "", networks: [] };
  let module = null;

  const decoded = (element) => {
    const text = atob(element.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; ++i) bytes[i] = text.charCodeAt(i);
    return bytes;
  };
  const put = (bytes) => {
    const at = module._malloc(bytes.length || 1);
    if (!at) throw new Error("there is not enough memory");
    module.HEAPU8.set(bytes, at);
    return at;
  };
  const lent = (bytes, use) => {
    const at = put(bytes);
    try { return use(at); } finally { module._free(at); }
  };
  const problem = () => new Error(module.UTF8ToString(module._web_error()));
  const read = (call) => lent(new Uint8Array(256), (at) => { if (call(at, 256)) throw problem(); return module.UTF8ToString(at); });
  const text = (net, key) => lent(new TextEncoder().encode(key + "\0"), (name) => read((at, size) => module._web_text(net, name, at, size)));

  const open = (element) => {
    const bytes = decoded(element);
    const net = lent(bytes, (at) => module._web_open(at, bytes.length, 0));
    if (!net) throw problem();
    const classes = [];
    const size = module._web_size(net);
    for (let i = 0; i < size; ++i) classes.push(read((at, room) => module._web_class(net, i, at, room)));
    return { net, size, side: module._web_side(net), classes, level: text(net, "level"), recipe: text(net, "recipe"), model: text(net, "model") };
  };

  // Pixels [height][width][4] as a network takes them: [side][side][3].
  const fitted = (network, picture) => {
    const count = 3 * network.side * network.side;
    return lent(picture.data, (from) => lent(new Uint8Array(count), (to) => {
      const error = module._web_fit(network.net, from, picture.width, picture.height, to);
      if (error) throw new Error(module.UTF8ToString(error));
      return module.HEAPU8.slice(to, to + count);
    }));
  };
  // Logits of prepared pixels, and how long each of `runs` calls took, in milliseconds.
  const logits = (network, pixels, runs = 1) => lent(pixels, (from) => lent(new Uint8Array(4 * network.size), (to) => {
    const times = [];
    for (let i = 0; i < runs; ++i) {
      const start = performance.now();
      if (module._web_run(network.net, from, network.side, to, network.size)) throw problem();
      times.push(performance.now() - start);
    }
    const bytes = module.HEAPU8.slice(to, to + 4 * network.size);
    return { values: new Float32Array(bytes.buffer), times };
  }));
  const median = (times) => [...times].sort((a, b) => a - b)[times.length >> 1];
  const probabilities = (values) => {
    const most = Math.max(...values);
    const powers = [...values].map((value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  };

  // The networks take turns, so that a slow moment of the machine meets all of them. The first half warms up: browsers
  // compile what runs often a second time.
  const measured = (prepared) => {
    const times = page.networks.map(() => []);
    const end = performance.now() + MOST_MILLISECONDS * page.networks.length;
    for (let run = 0; run < MOST_RUNS && (run < 4 || performance.now() < end); ++run)
      page.networks.forEach((network, i) => times[i].push(...logits(network, prepared[i]).times));
    return times.map((each) => median(each.slice(each.length >> 1)));
  };

  const show = (picture, name) => {
    const prepared = page.networks.map((network) => fitted(network, picture));
    const answers = page.networks.map((network, i) => probabilities(logits(network, prepared[i]).values));
    page.last = { name, prepared, answers, times: [] };
    draw(page.networks[0].side, prepared[0]);
    find("name").textContent = `${name}, as the networks see it`;
    document.querySelectorAll(".network").forEach((section, i) => {
      const order = answers[i].map((_, c) => c).sort((a, b) => answers[i][b] - answers[i][a]).slice(0, TOP);
      section.querySelector(".time").textContent = "…";
      section.querySelector("tbody").replaceChildren(...order.map((c) => {
        const row = document.createElement("tr");
        for (const cell of [page.networks[i].classes[c], `${(100 * answers[i][c]).toFixed(1)} %`]) row.insertCell().textContent = cell;
        return row;
      }));
    });
    find("compared").textContent = "";
    say("Measuring …");
    page.state = "measuring";
    setTimeout(() => { if (page.last.answers === answers) time(page.last); }, 50); // the answers are painted first
  };
  const time = (last) => {
    last.times = measured(last.prepared);
    document.querySelectorAll(".network .time").forEach((cell, i) => {
      cell.textContent = `${last.times[i].toFixed(last.times[i] < 10 ? 2 : 1)} ms`;
    });
    find("compared").textContent = compared(last.answers, last.times);
    say("");
    page.state = "shown";
  };
  // Every network beside the first.
  const compared = (answers, times) => {
    const bytes = [...document.querySelectorAll(".bytes data")].map((element) => Number(element.value));
    const best = answers.map((values) => values.indexOf(Math.max(...values)));
    const titles = [...document.querySelectorAll(".network h2")].map((element) => element.textContent);
    return titles.slice(1).map((title, i) => {
      const at = i + 1;
      const far = Math.max(...answers[at].map((value, c) => Math.abs(value - answers[0][c])));
      return `${title} beside ${titles[0]}: ${best[at] === best[0] ? "the same answer" : "another answer"}, `
        + `probabilities at most ${(100 * far).toFixed(1)} points apart, ${(bytes[0] / bytes[at]).toFixed(1)} times smaller, `
        + `${(times[0] / times[at]).toFixed(2)} times as fast.`;
    }).join(" ");
  };
  const draw = (side, rgb) => {
    const canvas = find("seen");
    canvas.width = canvas.height = side;
    const shown = new ImageData(side, side);
    for (let p = 0; p < side * side; ++p) shown.data.set([rgb[3 * p], rgb[3 * p + 1], rgb[3 * p + 2], 255], 4 * p);
    canvas.getContext("2d").putImageData(shown, 0, 0);
  };
  // Pixels of something that can be drawn; what shows through is white.
  const pixels = (source, width, height) => {
    const canvas = document.createElement("canvas");
    canvas.width = width, canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0);
    return context.getImageData(0, 0, width, height);
  };
  const take = async (file) => {
    page.state = "reading";
    try {
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
      show(pixels(bitmap, bitmap.width, bitmap.height), file.name);
    } catch (error) {
      page.state = "refused";
      say(`${file.name}: ${error.name === "InvalidStateError" ? "this browser cannot read it as a picture" : error.message}`);
    }
  };

  const listen = () => {
    const drop = find("drop");
    find("file").addEventListener("change", (event) => {
      if (event.target.files.length) take(event.target.files[0]);
      event.target.value = ""; // so that the same file may be chosen again
    });
    for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
      document.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
        if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
      });
    for (const button of document.querySelectorAll(".sample"))
      button.addEventListener("click", () => {
        const image = button.querySelector("img");
        show(pixels(image, image.naturalWidth, image.naturalHeight), button.dataset.name);
      });
  };
  const start = async () => {
    try {
      page.level = typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD)) ? "wasm128" : "scalar";
      const make = page.level === "wasm128" ? visq_wasm128 : visq_scalar;
      module = await make({ wasmBinary: decoded(find(`module-${page.level}`)) });
      page.networks = [...document.querySelectorAll("script.file")].map(open);
      find("level").textContent = page.level;
      listen();
      say("Ready.");
      page.state = "ready";
      document.querySelector(".sample")?.click();
    } catch (error) {
      page.state = "failed";
      say(`This page cannot run: ${error.message}`);
    }
  };
  page.logits = (index, prepared) => logits(page.networks[index], prepared).values;
  start();
  return page;
})();
