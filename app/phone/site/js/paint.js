// Class colours with outlines that follow the picture's. All arrays go row by row.

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
  const colours = new Set(palette.filter((entry) => entry[3]).map(String));
  const single = colours.size === 1 ? palette.find((entry) => entry[3]) : null; // then alpha says all
  const { slope, offset } = fit(coarse, sample(map, palette, coarse.width, coarse.height, single ? [3] : [3, 0, 1, 2]));
  const mask = new Uint8ClampedArray(fine.width * fine.height * 4);
  for (let y = 0, o = 0; y < fine.height; y++) {
    const a = slope.map((plane) => between(plane, y, coarse)), b = offset.map((plane) => between(plane, y, coarse));
    for (let x = 0; x < fine.width; x++, o += 4) {
      const near = x >> 1, beside = Math.min(Math.max(near + (x & 1 ? 1 : -1), 0), coarse.width - 1);
      const grey = fine.plane[o >> 2];
      const channel = (c) => (3 * (a[c][near] * grey + b[c][near]) + a[c][beside] * grey + b[c][beside]) / 4;
      const strength = channel(0), alpha = (strength - 127.5) * STEEPNESS + 127.5;
      if (alpha < 1) continue;
      for (let c = 0; c < 3; c++) mask[o + c] = single ? single[c] : (channel(c + 1) * 255) / strength;
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

/** Planes of some channels of the class colours at the cells' centres; unpainted is 0, so colours weigh as alpha does. */
function sample({ ids, width, height }, palette, w, h, channels) {
  return channels.map((channel) => {
    const table = Float32Array.from(palette, (entry) => (entry[3] ? entry[channel] : 0));
    const plane = new Float32Array(w * h);
    for (let y = 0, o = 0; y < h; y++) {
      const line = Math.floor(((y + 0.5) * height) / h) * width;
      for (let x = 0; x < w; x++, o++) plane[o] = table[ids[line + Math.floor(((x + 0.5) * width) / w)]];
    }
    return plane;
  });
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
