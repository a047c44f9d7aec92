// One minute of the model at full speed: how fast it is, and how much of that is left when the device is warm.

import { describeDevice, percentile } from "./figures.js";

const BUCKETS = 20; // points of the trend

/**
 * Run the model on the stored picture for so many seconds.
 *
 * @param {(state: {part: number, trend: number[]}) => boolean} onProgress part done, 0..1, and the median milliseconds
 *   of each twentieth so far; stops when it returns false
 * @returns {Promise<object>} a report like that of `python run_demo.py benchmark`, or null if it was stopped
 */
export async function benchmark(engine, litertVersion, seconds, onProgress) {
  for (let i = 0; i < 3; i++) await engine.repeat(); // warm-up: the browser still optimises its code
  const times = [], buckets = Array.from({ length: BUCKETS }, () => []);
  const start = performance.now();
  let heap = 0;
  for (let part = 0; part < 1; part = (performance.now() - start) / 1000 / seconds) {
    const run = await engine.repeat();
    times.push(run.milliseconds);
    buckets[Math.floor(part * BUCKETS)].push(run.milliseconds);
    heap = run.heap;
    if (!onProgress({ part, trend: medians(buckets) })) return null;
  }
  return report(engine, litertVersion, seconds, times, medians(buckets), heap);
}

const medians = (buckets) => buckets.map((bucket) => percentile(bucket, 50)).filter((value) => value !== null);

async function report(engine, litertVersion, seconds, times, trend, heap) {
  const round = (value) => Math.round(value * 1000) / 1000;
  const median = percentile(times, 50);
  return {
    device: await describeDevice(),
    date: new Date().toISOString(),
    rows: [{
      model: engine.entry.name,
      variant: engine.entry.variant,
      runtime: `LiteRT.js ${litertVersion}, WebAssembly ${engine.build}`,
      threads: 1,
      median_ms: round(median),
      p5_ms: round(percentile(times, 5)),
      p95_ms: round(percentile(times, 95)),
      min_ms: round(Math.min(...times)),
      fps: round(1000 / median),
      load_ms: round(engine.loadTime),
      rss_mb: null, // a page is not told its process's memory
      pss_mb: null,
      peak_rss_mb: null,
      wasm_heap_mb: round(heap / 1e6),
      file_mb: round(engine.entry.bytes / 1e6),
      sha256: engine.entry.sha256,
      runs: times.length,
      pixels_equal: engine.proof.equal / engine.proof.total,
    }],
    sustained: { seconds, trend_ms: trend.map(round), change: round(trend.at(-1) / trend[0] - 1) },
  };
}

/** Draw the trend as a line from the lowest to the highest value into an SVG of viewBox 0 0 100 30. */
export function sparkline(trend) {
  const low = Math.min(...trend), span = Math.max(...trend) - low || 1;
  return trend.map((value, i) => `${(i * 100) / (BUCKETS - 1)},${28 - ((value - low) / span) * 26}`).join(" ");
}
