// Pixels in and out of the network. Pictures are flat arrays, row by row; RGBA or RGB, 0..255.

/**
 * Stretch a picture to the input size, each pixel the mean of those it covers: OpenCV's INTER_AREA, as in Python.
 * There, too, a picture is halved as long as it stays large enough, and if only its width is left to shrink a little,
 * two neighbours are weighed: INTER_LINEAR.
 *
 * @param {Uint8ClampedArray} rgba width x height x 4
 * @returns {Uint8Array} outHeight x outWidth x 3, RGB
 */
export function shrink(rgba, width, height, outWidth, outHeight) {
  while (width >= 2 * outWidth && height >= 2 * outHeight && width % 2 === 0 && height % 2 === 0) {
    rgba = halve(rgba, width, height);
    width /= 2;
    height /= 2;
  }
  const little = height === outHeight && outWidth < width && width < 2 * outWidth;
  const across = little ? neighbours(width, outWidth) : spans(width, outWidth);
  const round = little ? halfUp : halfToEven; // as OpenCV does in the two
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
    for (let i = 0, o = y * sum.length; i < sum.length; i++) out[o + i] = round(sum[i]);
  }
  return out;
}

/** Half as wide and high, RGBA; OpenCV rounds halves up here. */
function halve(rgba, width, height) {
  const stride = width * 4;
  const out = new Uint8ClampedArray(rgba.length / 4);
  for (let y = 0, o = 0; y < height; y += 2) {
    for (let i = y * stride; i < (y + 1) * stride; i += 8) {
      for (let c = 0; c < 4; c++, o++) {
        const k = i + c;
        out[o] = (rgba[k] + rgba[k + 4] + rgba[k + stride] + rgba[k + stride + 4] + 2) >> 2;
      }
    }
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

/** The same for the two pixels nearest to each place. */
function neighbours(from, to) {
  const start = [0], index = [], weight = [];
  for (let i = 0; i < to; i++) {
    const place = ((i + 0.5) * from) / to - 0.5, low = Math.floor(place);
    index.push(low, Math.min(low + 1, from - 1));
    weight.push(1 - (place - low), place - low);
    start.push(index.length);
  }
  return { start: Int32Array.from(start), index: Int32Array.from(index), weight: Float32Array.from(weight) };
}

function halfUp(value) {
  return Math.floor(value + 0.5);
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
