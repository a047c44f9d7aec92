// Draws pictures and masks onto the canvas.

const OPACITY = 0.55; // of the classes' colours

export class View {
  mode = "colours"; // or "blur", "replace"
  mirror = false;
  chosen = null; // a class id, or null for all
  backdrop = null; // a picture for "replace", or null for the built-in one
  #canvas;
  #context;
  #mask = document.createElement("canvas");
  #layer = document.createElement("canvas");
  #small = document.createElement("canvas");
  #map = null;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  /** Whether each mask must be shown with the very picture it was computed from: else the background would show. */
  get exact() {
    return this.mode !== "colours";
  }

  /** [red, green, blue, 255 or 0] for each class; class 0, the background, stays unpainted. */
  palette(classes) {
    const painted = (id) => (this.chosen === null ? id > 0 : id === this.chosen);
    const white = [255, 255, 255]; // where a picture is cut out, the colour is of no account
    return classes.map(({ color }, id) => [...(this.exact ? white : color), painted(id) ? 255 : 0]);
  }

  /** Take a new class map, and what `paint` in paint.js made of it. */
  setMask(map, { mask, width, height }) {
    resize(this.#mask, width, height).putImageData(new ImageData(mask, width, height), 0, 0);
    this.#map = map;
  }

  clear() {
    this.#map = null;
  }

  /** Draw a picture, and over it, or cut by it, the newest mask. */
  draw({ source, width, height }) {
    resize(this.#canvas, width, height);
    const context = this.#context;
    context.imageSmoothingQuality = "high";
    if (this.exact && this.#map) {
      this.#drawBackground(source, width, height);
      this.#flipped(width, () => context.drawImage(this.#cutOut(source, width, height), 0, 0));
    } else {
      this.#flipped(width, () => {
        context.drawImage(source, 0, 0, width, height);
        context.globalAlpha = OPACITY;
        if (this.#map) context.drawImage(this.#mask, 0, 0, width, height);
        context.globalAlpha = 1;
      });
    }
  }

  /** The class id under a pointer's position on the page; null where there is no mask. */
  classAt({ clientX, clientY }) {
    if (!this.#map) return null;
    const box = this.#canvas.getBoundingClientRect();
    const across = (clientX - box.left) / box.width;
    const { ids, width, height } = this.#map;
    const x = Math.min(width - 1, Math.floor((this.mirror ? 1 - across : across) * width));
    const y = Math.min(height - 1, Math.floor(((clientY - box.top) / box.height) * height));
    return ids[y * width + x] ?? null;
  }

  #flipped(width, draw) {
    if (this.mirror) this.#context.setTransform(-1, 0, 0, 1, width, 0);
    draw();
    this.#context.resetTransform();
  }

  #cutOut(source, width, height) {
    const context = resize(this.#layer, width, height);
    context.globalCompositeOperation = "copy";
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#mask, 0, 0, width, height);
    context.globalCompositeOperation = "source-in";
    context.drawImage(source, 0, 0, width, height);
    return this.#layer;
  }

  #drawBackground(source, width, height) {
    const context = this.#context;
    if (this.mode === "blur") {
      this.#flipped(width, () => context.drawImage(this.#blurred(source, width, height), 0, 0, width, height));
    } else if (this.backdrop) {
      const scale = Math.max(width / this.backdrop.width, height / this.backdrop.height);
      const [w, h] = [this.backdrop.width * scale, this.backdrop.height * scale];
      context.drawImage(this.backdrop, (width - w) / 2, (height - h) / 2, w, h); // not mirrored: it may hold words
    } else {
      const sky = context.createLinearGradient(0, 0, width, height);
      ["#ff8a5c", "#b8487a", "#3a2d6b"].forEach((stop, i) => sky.addColorStop(i / 2, stop));
      context.fillStyle = sky;
      context.fillRect(0, 0, width, height);
    }
  }

  /** Halve the picture down to 40 pixels and let drawing it large smooth it: a blur that every browser has. */
  #blurred(source, width, height) {
    const context = resize(this.#small, width, height);
    context.globalCompositeOperation = "copy";
    let [w, h] = [width, height];
    context.drawImage(source, 0, 0, w, h);
    while (Math.min(w, h) > 40) {
      const [half, low] = [Math.ceil(w / 2), Math.ceil(h / 2)];
      context.drawImage(this.#small, 0, 0, w, h, 0, 0, half, low);
      [w, h] = [half, low];
    }
    while (w < width) {
      const [twice, high] = [Math.min(width, w * 2), Math.min(height, h * 2)];
      context.drawImage(this.#small, 0, 0, w, h, 0, 0, twice, high);
      [w, h] = [twice, high];
    }
    return this.#small;
  }
}

/** Set a canvas's size, which empties it, only if it changes; returns its context. */
function resize(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return canvas.getContext("2d");
}
