// Runs one model beside the page. A classic worker, because LiteRT.js loads its script by importScripts;
// ES modules come in by import(). The page asks {id, call, args} and is answered {id, value} or {id, error}.

const here = (path) => new URL(`../${path}`, self.location).href;

let pixels, paint, litert, runtime; // the modules, and LiteRT.js once loaded
let model, input, stored; // the compiled model, its size and classes, and the stored picture with its answer
let canvas, context;

self.onmessage = async ({ data: { id, call, args } }) => {
  try {
    const { transfer = [], ...value } = await calls[call](...args);
    self.postMessage({ id, value }, transfer);
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};

const calls = {
  /** Load a build of the runtime and a model, an entry of site.json. */
  async load(build, entry) {
    const start = performance.now();
    [pixels, { paint }] = await Promise.all([import(here("js/pixels.js")), import(here("js/paint.js"))]);
    litert = await import(here("litert/litert.js"));
    const relaxed = await litert.supportsFeature("relaxedSimd");
    if (!relaxed && !build.includes("compat")) throw new Error("this browser has no relaxed SIMD");
    const [binary, file, check] = await download([`litert/${build}.wasm.gz`, entry.file, entry.check]);
    self.Module = { wasmBinary: await unpack(binary), print() {}, printErr() {} };
    // LiteRT.js would open a GPU device that an integer model never uses
    Object.defineProperty(navigator, "gpu", { value: undefined, configurable: true });
    runtime = await litert.loadLiteRt(here(`litert/${build}.js`));
    model = await litert.loadAndCompile(file, { accelerator: "wasm" });
    const [height, width] = entry.input;
    const size = height * width * 3;
    input = { height, width, classes: entry.classes.length };
    stored = { pixels: check.subarray(0, size), answer: check.subarray(size) };
    return { milliseconds: performance.now() - start };
  },

  /** Compare the stored picture's class map with the one Python got: a model that failed to prepare shows here. */
  async check() {
    const { ids } = await infer(stored.pixels);
    const equal = ids.length === stored.answer.length ? ids.filter((id, i) => id === stored.answer[i]).length : 0;
    return { equal, total: stored.answer.length, pixels: stored.pixels, ids };
  },

  /** Segment a picture; the bitmap comes back with it, so that both can be shown together. */
  async segment(bitmap, palette, outputSize) {
    const start = performance.now();
    const { width, height } = bitmap;
    const rgba = read(bitmap);
    const tensor = pixels.shrink(rgba, width, height, input.width, input.height);
    const { ids, milliseconds } = await infer(tensor);
    const map = { ids, height: outputSize[0], width: outputSize[1] };
    const painted = paint(map, palette, rgba, width, height);
    return {
      map, painted, bitmap, milliseconds,
      around: performance.now() - start - milliseconds, // what is not the model: pixels in, colours out
      shares: pixels.shares(ids, input.classes),
      heap: heap(),
      transfer: [ids.buffer, painted.mask.buffer, bitmap],
    };
  },

  /** Run the model once on the stored picture, for the benchmark. */
  async repeat() {
    const { milliseconds } = await infer(stored.pixels);
    return { milliseconds, heap: heap() };
  },
};

async function infer(values) {
  const tensor = new litert.Tensor(values, [1, input.height, input.width, 3]);
  const start = performance.now();
  const [output] = await model.run(tensor);
  const milliseconds = performance.now() - start;
  const ids = output.toTypedArray(); // a copy
  output.delete();
  tensor.delete();
  return { ids, milliseconds };
}

function read(bitmap) {
  const { width, height } = bitmap;
  if (canvas?.width !== width || canvas?.height !== height) {
    canvas = new OffscreenCanvas(width, height);
    context = canvas.getContext("2d", { willReadFrequently: true });
  }
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

const heap = () => runtime.liteRtWasm.HEAPU8.length;

/** Fetch files side by side, and tell the page how many bytes have come and how many there will be. */
async function download(paths) {
  const loaded = paths.map(() => 0), totals = paths.map(() => 0);
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  return Promise.all(paths.map(async (path, i) => {
    const response = await fetch(here(path));
    if (!response.ok) throw new Error(`${path} could not be fetched (${response.status})`);
    totals[i] = Number(response.headers.get("Content-Length")) || 0;
    const parts = [];
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      loaded[i] += value.length;
      self.postMessage({ progress: { loaded: sum(loaded), total: Math.max(sum(totals), sum(loaded)) } });
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
}

/** Unpack gzip, unless the host has declared the packing and the browser undone it. */
async function unpack(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
