// Pixels in and out of the network. Pictures are flat arrays, row by row; RGBA or RGB, 0..255.

/**
 * Stretch a picture to the input size, each pixel the mean of those it covers: OpenCV's INTER_AREA, as in Python.
 *
 * @param {Uint8ClampedArray} rgba width x height x 4
 * @returns {Uint8Array} outHeight x outWidth x 3, RGB
 */
export function shrink(rgba, width, height, outWidth, outHeight) {
  const across = spans(width, outWidth);
  const down = spans(height, outHeight);
  const row = new Float32Array(outWidth * 3);
  const sum = new Float32Array(outWidth * 3);
  const out = new Uint8Array(outWidth * outHeight * 3);
  let shrunk = -1; // the line that `row` holds: neighbours share one
  for (let y = 0; y < outHeight; y++) {
    sum.fill(0);
    for (let k = down.start[y]; k < down.start[y + 1]; k++) {
      if (down.index[k] !== shrunk) shrinkRow(rgba, (shrunk = down.index[k]) * width * 4, across, row);
      const weight = down.weight[k];
      for (let i = 0; i < row.length; i++) sum[i] += weight * row[i];
    }
    for (let i = 0, o = y * sum.length; i < sum.length; i++) out[o + i] = halfToEven(sum[i]);
  }
  return out;
}

function shrinkRow(rgba, offset, { start, index, weight }, row) {
  for (let x = 0, o = 0; o < row.length; x++, o += 3) {
    let r = 0, g = 0, b = 0;
    for (let k = start[x]; k < start[x + 1]; k++) {
      const i = offset + index[k] * 4;
      r += weight[k] * rgba[i];
      g += weight[k] * rgba[i + 1];
      b += weight[k] * rgba[i + 2];
    }
    row[o] = r;
    row[o + 1] = g;
    row[o + 2] = b;
  }
}

/** For each of `to` places: which of `from` pixels it covers (index[start[i]] ...) and what part of the mean each is. */
function spans(from, to) {
  const scale = from / to;
  const start = [0], index = [], weight = [];
  for (let i = 0; i < to; i++) {
    const low = i * scale, high = Math.min(low + scale, from);
    for (let j = Math.floor(low); j < high - 1e-9; j++) {
      const part = Math.min(high, j + 1) - Math.max(low, j);
      if (part > 1e-3) {
        index.push(j);
        weight.push(part / (high - low));
      }
    }
    start.push(index.length);
  }
  return { start: Int32Array.from(start), index: Int32Array.from(index), weight: Float32Array.from(weight) };
}

function halfToEven(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low & 1) ? low + 1 : low;
}

/** Count the pixels of each class and give its part of the picture, 0..1. */
export function shares(ids, classes) {
  const counts = new Array(classes).fill(0);
  for (const id of ids) counts[id]++;
  return counts.map((count) => count / ids.length);
}

const RADIUS = 3; // of the guided filter's window, in cells of 4x4 pixels of the picture: as in app/refine.py
const EPSILON = 1e-3; // of a grey scale 0..1, squared: a fainter edge is no edge
const STEEPNESS = 2.5; // how much narrower an outline's soft rim becomes

/**
 * Colour a class map so that its outlines follow the picture's: the fast guided filter (K. He, J. Sun, 2015) on the
 * class colours, guided by the picture's grey, computed on cells of 4x4 pixels and applied to every second pixel.
 *
 * @param {{ids: Uint8Array, width: number, height: number}} map class ids of the whole picture, at any size
 * @param {number[][]} palette [red, green, blue, 255 or 0] of each class: colour, and whether it is painted at all
 * @param {Uint8ClampedArray} rgba the picture, width x height x 4
 * @returns {{mask: Uint8ClampedArray, width: number, height: number}} RGBA at half the picture's size, soft at edges
 */
export function paint(map, palette, rgba, width, height) {
  const fine = guide(rgba, width, height);
  const coarse = halve(fine);
  const { slope, offset } = fit(coarse, sample(map, palette, coarse.width, coarse.height));
  const mask = new Uint8ClampedArray(fine.width * fine.height * 4);
  for (let y = 0, o = 0; y < fine.height; y++) {
    const a = slope.map((plane) => between(plane, y, coarse)), b = offset.map((plane) => between(plane, y, coarse));
    for (let x = 0; x < fine.width; x++, o += 4) {
      const near = x >> 1, beside = Math.min(Math.max(near + (x & 1 ? 1 : -1), 0), coarse.width - 1);
      const grey = fine.plane[o >> 2];
      const channel = (c) => (3 * (a[c][near] * grey + b[c][near]) + a[c][beside] * grey + b[c][beside]) / 4;
      const strength = channel(3), alpha = (strength - 127.5) * STEEPNESS + 127.5;
      if (alpha < 1) continue;
      for (let c = 0; c < 3; c++) mask[o + c] = (channel(c) * 255) / strength; // colours were weighted by alpha
      mask[o + 3] = alpha;
    }
  }
  return { mask, width: fine.width, height: fine.height };
}

/** A line of the fine grid in a plane of the coarse one: 3/4 of the cells it lies in, 1/4 of those next to them. */
function between(plane, y, { width, height }) {
  const near = (y >> 1) * width, next = Math.min(Math.max((y >> 1) + (y & 1 ? 1 : -1), 0), height - 1) * width;
  const line = new Float32Array(width);
  for (let x = 0; x < width; x++) line[x] = 0.75 * plane[near + x] + 0.25 * plane[next + x];
  return line;
}

/** The picture's grey, 0..1, at half its size. */
function guide(rgba, width, height) {
  const w = Math.max(1, width >> 1), h = Math.max(1, height >> 1);
  const plane = new Float32Array(w * h);
  const right = width > 1 ? 4 : 0, below = height > 1 ? width * 4 : 0;
  const grey = (i) => 0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2];
  for (let y = 0, o = 0; y < h; y++) {
    for (let x = 0, i = y * 2 * width * 4; x < w; x++, o++, i += 8) {
      plane[o] = (grey(i) + grey(i + right) + grey(i + below) + grey(i + right + below)) / 1020;
    }
  }
  return { plane, width: w, height: h };
}

function halve({ plane, width, height }) {
  const w = (width + 1) >> 1, h = (height + 1) >> 1;
  const out = new Float32Array(w * h);
  for (let y = 0, o = 0; y < h; y++) {
    const top = 2 * y * width, bottom = Math.min(2 * y + 1, height - 1) * width;
    for (let x = 0; x < w; x++, o++) {
      const left = 2 * x, right = Math.min(left + 1, width - 1);
      out[o] = (plane[top + left] + plane[top + right] + plane[bottom + left] + plane[bottom + right]) / 4;
    }
  }
  return { plane: out, width: w, height: h };
}

/** Four planes, red, green, blue and alpha, of the class colours at the cells' centres; unpainted is black. */
function sample({ ids, width, height }, palette, w, h) {
  const table = palette.map(([r, g, b, on]) => (on ? [r, g, b, 255] : [0, 0, 0, 0]));
  const planes = [0, 1, 2, 3].map(() => new Float32Array(w * h));
  for (let y = 0, o = 0; y < h; y++) {
    const line = Math.floor(((y + 0.5) * height) / h) * width;
    for (let x = 0; x < w; x++, o++) {
      const entry = table[ids[line + Math.floor(((x + 0.5) * width) / w)]];
      for (let c = 0; c < 4; c++) planes[c][o] = entry[c];
    }
  }
  return planes;
}

/** The guided filter's line through each window: colour = slope x grey + offset, both averaged over windows. */
function fit({ plane: grey, width, height }, planes) {
  const mean = (plane) => average(plane, width, height);
  const product = (a, b) => a.map((value, i) => value * b[i]);
  const middle = mean(grey);
  const spread = mean(product(grey, grey)).map((value, i) => value - middle[i] ** 2 + EPSILON);
  const slope = [], offset = [];
  for (const plane of planes) {
    const level = mean(plane);
    const steep = mean(product(grey, plane)).map((value, i) => (value - middle[i] * level[i]) / spread[i]);
    slope.push(mean(steep));
    offset.push(mean(level.map((value, i) => value - steep[i] * middle[i])));
  }
  return { slope, offset };
}

/** Mean over windows of (2 RADIUS + 1)^2; beyond the edge the edge goes on. */
function average(plane, width, height) {
  return averageLines(averageLines(plane, height, width, width, 1), width, 1, height, width);
}

function averageLines(plane, lines, lineStep, length, step) {
  const out = new Float32Array(plane.length);
  for (let line = 0; line < lines; line++) {
    const base = line * lineStep, last = base + (length - 1) * step;
    let sum = plane[base];
    for (let i = -RADIUS; i < RADIUS; i++) sum += plane[Math.min(base + Math.max(i, 0) * step, last)];
    for (let i = 0, o = base; i < length; i++, o += step) {
      out[o] = (sum += plane[Math.min(o + RADIUS * step, last)] - plane[Math.max(o - (RADIUS + 1) * step, base)]) / (2 * RADIUS + 1);
    }
  }
  return out;
}
