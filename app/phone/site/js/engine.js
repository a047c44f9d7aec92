// The page's side of the worker: load a model, prove it, ask it for class maps.

// Both single-threaded. Relaxed SIMD lets processors use their int8 dot products; plain SIMD runs in every browser.
const BUILDS = { "relaxed SIMD": "litert_wasm_internal", SIMD: "litert_wasm_compat_internal" };
const LAST = "SIMD";

export class Engine {
  #worker;
  #waiting = new Map();
  #asked = 0;

  /**
   * Load a model and prove it on the stored picture, in the fastest build that gives Python's class map.
   *
   * @param {object} entry one of site.json's models
   * @param {(progress: {loaded: number, total: number}) => void} onProgress bytes
   * @returns {Promise<Engine>} its `proof` is {equal, total, pixels, ids}; equal < total where no build is right
   */
  static async start(entry, onProgress) {
    for (const build of Object.keys(BUILDS)) {
      const engine = new Engine(entry, build, onProgress);
      try {
        engine.loadTime = (await engine.#ask("load", [BUILDS[build], entry])).milliseconds;
        engine.proof = await engine.#ask("check");
        if (engine.proven || build === LAST) return engine;
        engine.stop();
      } catch (error) {
        engine.stop();
        if (build === LAST) throw error;
      }
    }
  }

  constructor(entry, build, onProgress) {
    this.entry = entry;
    this.build = build;
    this.#worker = new Worker(new URL("worker.js", import.meta.url));
    this.#worker.onmessage = ({ data }) => (data.progress ? onProgress(data.progress) : this.#answer(data));
    this.#worker.onerror = (event) => this.#fail(event.message || "the worker did not start");
  }

  get proven() {
    return this.proof.equal === this.proof.total;
  }

  /** Segment a bitmap, which goes to the worker and comes back: {ids, mask, bitmap, shares, milliseconds, ...}. */
  segment(bitmap, palette) {
    return this.#ask("segment", [bitmap, palette, this.entry.output], [bitmap]);
  }

  /** Run the model once more on the stored picture: {milliseconds, heap}. */
  repeat() {
    return this.#ask("repeat");
  }

  stop() {
    this.#worker.terminate();
    this.#fail("stopped");
  }

  #ask(call, args = [], transfer = []) {
    const id = ++this.#asked;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, args }, transfer);
    });
  }

  #answer({ id, value, error }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    error === undefined ? resolve(value) : reject(new Error(error));
  }

  #fail(message) {
    for (const { reject } of this.#waiting.values()) reject(new Error(message));
    this.#waiting.clear();
  }
}
