// One minute of the model at full speed: how fast it is, and how much of that is left when the device is warm.

import { describeDevice, percentile } from "./figures.js";

const POINTS = 20; // of the trend
const BURST = 1 / 6; // the first part of the run, ten seconds of a minute, and
const STEADY = 1 / 3; // the last: as in app/sustained.py
const NOISY = 0.05; // more difference than this between the halves of a run, as in app/benchmark.py

/**
 * Run the model on the stored picture for so many seconds.
 *
 * @param {(part: number, trend: number[]) => boolean} onProgress part done, 0..1, and the median milliseconds of each
 *   twentieth so far; the run is given up when it returns false
 * @returns {Promise<object>} a report that `python run_demo.py compare` reads; null if the run was given up
 */
export async function benchmark(engine, litertVersion, seconds, onProgress) {
  for (let i = 0; i < 3; i++) await engine.repeat(); // warm-up: the browser still optimises its code
  const slices = Array.from({ length: POINTS }, () => []); // milliseconds of the runs begun in each
  const start = performance.now();
  let heap = 0;
  for (let part = 0; part < 1; part = (performance.now() - start) / 1000 / seconds) {
    const run = await engine.repeat();
    slices[Math.floor(part * POINTS)].push(run.milliseconds);
    heap = run.heap;
    if (!onProgress(part, medians(slices))) return null;
  }
  const runtime = `LiteRT.js ${litertVersion}, WebAssembly with ${engine.build}`;
  return {
    device: await describeDevice(),
    runtime,
    date: new Date().toISOString(),
    noise: noise(slices),
    rows: [row(engine, runtime, slices, heap)],
    sustained: sustained(engine, seconds, slices),
  };
}

const medians = (slices) => slices.filter((slice) => slice.length).map((slice) => percentile(slice, 50));
const round = (value) => Math.round(value * 1000) / 1000;

function row({ entry, loadTime, proof }, runtime, slices, heap) {
  const times = slices.flat();
  const median = percentile(times, 50);
  return {
    model: entry.name,
    variant: entry.variant,
    runtime,
    threads: 1,
    median_ms: round(median),
    p5_ms: round(percentile(times, 5)),
    p95_ms: round(percentile(times, 95)),
    min_ms: round(Math.min(...times)),
    fps: round(1000 / median),
    load_ms: round(loadTime),
    rss_mb: null, // a page is not told its process's memory
    pss_mb: null,
    peak_rss_mb: null,
    wasm_heap_mb: round(heap / 1e6),
    file_mb: round(entry.bytes / 1e6),
    sha256: entry.sha256,
    pixels_equal: proof.equal / proof.total,
    rounds_ms: medians(slices).map(round),
    times_ms: times.map(round),
  };
}

function noise(slices) {
  const trend = medians(slices), half = trend.length >> 1;
  const drift = half ? Math.abs(percentile(trend.slice(half), 50) / percentile(trend.slice(0, half), 50) - 1) : 0;
  return { drift: round(drift), others: null, noisy: drift > NOISY };
}

function sustained({ entry }, seconds, slices) {
  const points = slices.map((slice, i) => ({
    t_s: round(((i + 1) * seconds) / POINTS),
    fps: round((slice.length * POINTS) / seconds),
    temperature_c: null, // no browser tells
    throttling: null,
  }));
  const mean = (some) => round(some.reduce((sum, { fps }) => sum + fps, 0) / some.length);
  return {
    model: entry.name,
    threads: 1,
    seconds,
    burst_fps: mean(points.slice(0, Math.round(POINTS * BURST))),
    steady_fps: mean(points.slice(Math.round(-POINTS * STEADY))),
    points,
  };
}

/** Draw a trend, lowest to highest value, as the points of a line in a viewBox of 100 x 30. */
export function sparkline(trend) {
  const low = Math.min(...trend), span = Math.max(...trend) - low || 1;
  return trend.map((value, i) => `${(i * 100) / (POINTS - 1)},${28 - ((value - low) / span) * 26}`).join(" ");
}
