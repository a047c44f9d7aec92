// What is measured, and what the browser tells about the device.

/** Percentile of some numbers, 0..100, linear between neighbours as in NumPy; null of none. */
export function percentile(values, percent) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const place = ((sorted.length - 1) * percent) / 100;
  const low = Math.floor(place), high = Math.ceil(place);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

/** Frames a second and the model's time over the last frames. */
export class Meter {
  #finished = []; // times of the last frames, in ms
  #model = []; // the model's own time for each, in ms

  add(now, milliseconds) {
    this.#finished.push(now);
    this.#model.push(milliseconds);
    while (this.#finished.length > 120) {
      this.#finished.shift();
      this.#model.shift();
    }
  }

  reset() {
    this.#finished = [];
    this.#model = [];
  }

  /** Intervals by the time they took, over the last three seconds at most; null before there is an interval. */
  fps(now) {
    const recent = this.#finished.filter((time) => now - time < 3000);
    return recent.length > 1 ? ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]) : null;
  }

  get model() {
    return { p50: percentile(this.#model, 50), p95: percentile(this.#model, 95) };
  }
}

/** Megabytes (10^6 bytes) of the page's JavaScript, where the browser tells (Chromium); else null. */
export function scriptMemory() {
  const used = performance.memory?.usedJSHeapSize;
  return used ? used / 1e6 : null;
}

/** Name the device in a line: model, system, browser, cores and memory, as far as the browser tells. */
export async function describeDevice() {
  const asked = ["model", "platformVersion", "fullVersionList"];
  const told = await navigator.userAgentData?.getHighEntropyValues(asked).catch(() => null);
  const brand = told?.fullVersionList?.filter(({ brand }) => !/not.?a.?brand/i.test(brand)).at(-1);
  const parts = told
    ? [told.model, `${told.platform} ${told.platformVersion}`.trim(), brand && `${brand.brand} ${brand.version}`]
    : [navigator.userAgent.replace(/^Mozilla\/5\.0 /, "")];
  if (navigator.hardwareConcurrency) parts.push(`${navigator.hardwareConcurrency} cores`);
  if (navigator.deviceMemory) parts.push(`at least ${navigator.deviceMemory} GB`);
  return parts.filter(Boolean).join(", ");
}
