// The page: ties camera, engine, view and figures to its buttons.

import { benchmark, sparkline } from "./benchmark.js";
import { Camera } from "./camera.js";
import { keepOffline, offerInstall, WakeLock } from "./device.js";
import { Engine } from "./engine.js";
import { describeDevice, Meter, scriptMemory } from "./figures.js";
import { deliver, fileName, Recorder, snapshot } from "./media.js";
import { paint } from "./paint.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const video = $("video");
const camera = new Camera(video);
const view = new View($("picture"));
const meter = new Meter();
const recorder = new Recorder();
const wakeLock = new WakeLock();

let site; // site.json: the models, and the version of LiteRT.js
let engine; // the model in use
let running = false; // pictures are being segmented
let looping = false; // a loop over them is alive
let drawing = 0; // the next call of the drawing loop
let paused = false; // by hiding the page
let measuring = false; // the benchmark runs
let latest = null; // the newest result, for the figures

async function main() {
  wireButtons();
  offerInstall($("install"));
  describeDevice().then((text) => ($("device").textContent = text));
  const kept = await keepOffline();
  $("offline").textContent = kept ? "Kept on this device: the page opens without a network too." : "";
  site = await (await fetch("site.json")).json();
  for (const { name, bytes } of site.models) $("model").append(new Option(`${name} · ${megabytes(bytes, 1)}`, name));
  $("model-row").hidden = site.models.length < 2;
  const wanted = new URLSearchParams(location.search).get("model");
  if (site.models.some(({ name }) => name === wanted)) $("model").value = wanted;
  await useModel();
}

// The model

async function useModel() {
  halt();
  engine?.stop();
  engine = undefined;
  welcome(`Loading the model …`, true);
  const entry = site.models.find(({ name }) => name === $("model").value);
  try {
    engine = await Engine.start(entry, ({ loaded, total }) => {
      $("progress").value = loaded / total;
      $("progress-text").textContent = `Loading ${megabytes(loaded, 1)} of ${megabytes(total, 1)}`;
    });
  } catch (error) {
    return complain(`The model did not load (${error.message}). Reload the page; it needs a browser from 2023 or newer.`);
  }
  view.chosen = null;
  meter.reset();
  $("terms").textContent = entry.terms;
  showProof();
  showClasses();
  if (camera.picture && engine.proven) run();
}

/** Say whether the stored picture's class map is Python's, and show that very picture. */
function showProof() {
  const { equal, total } = engine.proof;
  const percent = ((100 * equal) / total).toFixed(1);
  $("proof").hidden = false;
  $("proof").classList.toggle("bad", !engine.proven);
  $("proof").querySelector("use").setAttribute("href", engine.proven ? "#check" : "#warn");
  $("proof").lastChild.textContent = engine.proven ? "Self-check passed" : "Self-check failed";
  $("build").textContent = `LiteRT.js ${site.litert}, WebAssembly with ${engine.build}, one thread. Self-check: ` +
    `${equal.toLocaleString("en")} of ${total.toLocaleString("en")} pixels as in Python.`;
  drawPoster();
  if (engine.proven) {
    welcome("An integer-only vision transformer, in your browser.");
  } else {
    complain(`This browser computes the model differently: only ${percent} % of a stored picture's pixels are right. ` +
      "Do not trust its masks here; try another browser.");
    $("anyway").hidden = false;
  }
}

function drawPoster() {
  const { input: [height, width], output, classes } = engine.entry;
  const { pixels, ids } = engine.proof;
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let i = 0; i < width * height; i++) rgba.set(pixels.subarray(3 * i, 3 * i + 3), 4 * i);
  const picture = new OffscreenCanvas(width, height);
  picture.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  const map = { ids, height: output[0], width: output[1] };
  view.mirror = false;
  view.setMask(map, paint(map, view.palette(classes), rgba, width, height));
  draw({ source: picture, width: 640, height: 480 });
}

// The loop

/** Begin, or go on, segmenting what the camera shows. */
function run() {
  $("welcome").hidden = true;
  $("dock").hidden = false;
  $("do-flip").hidden = !camera.live;
  running = true;
  wakeLock.set(true);
  meter.reset();
  setMirror(camera.selfie);
  if (!looping) segmentLoop();
  drawing = requestAnimationFrame(drawLoop);
}

function halt() {
  running = false;
  cancelAnimationFrame(drawing);
  wakeLock.set(false);
}

/** One picture after the other, always the newest: the next is taken when the worker is done with the last. */
async function segmentLoop() {
  looping = true;
  while (running) {
    await newPicture();
    const picture = camera.picture;
    if (!running || !picture) continue;
    const used = engine;
    try {
      const bitmap = await createImageBitmap(picture.source);
      const result = await used.segment(bitmap, view.palette(used.entry.classes));
      if (used === engine && running) show(result, picture);
      result.bitmap.close();
    } catch (error) {
      if (used === engine && running) fail(error);
    }
  }
  looping = false;
}

function show(result, picture) {
  meter.add(performance.now(), result.milliseconds);
  view.setMask(result.map, result.painted);
  latest = { ...result, picture };
  if (view.exact) draw({ source: result.bitmap, width: picture.width, height: picture.height });
}

/** Colours float over the live picture at the screen's own rate. */
function drawLoop() {
  if (!view.exact && camera.picture) draw(camera.picture);
  drawing = requestAnimationFrame(drawLoop);
}

function draw(picture) {
  $("stage").style.setProperty("--ratio", picture.width / picture.height);
  view.draw(picture);
}

/** Wait for the video's next frame; a still picture, or a video that stands, comes round after a moment. */
function newPicture() {
  return new Promise((resolve) => {
    if (video.requestVideoFrameCallback && !video.paused) video.requestVideoFrameCallback(resolve);
    else requestAnimationFrame(resolve);
    setTimeout(resolve, 250);
  });
}

// Camera

async function startCamera(open = () => camera.open()) {
  halt();
  view.clear();
  welcome("Waiting for the camera …");
  $("start").hidden = $("anyway").hidden = $("open-file").hidden = true;
  try {
    await open();
    run();
  } catch (error) {
    fail(error);
  }
}

function stopCamera() {
  halt();
  camera.close();
  showProof();
}

/** Hidden pages cost battery and show nothing: pause, and go on when they are back. */
async function onVisibility() {
  if (document.hidden && running) {
    halt();
    camera.pause();
    paused = true;
  } else if (!document.hidden && paused) {
    paused = false;
    try {
      await camera.resume();
      run();
    } catch (error) {
      fail(error);
    }
  }
}

function setMirror(on) {
  view.mirror = on;
  $("do-mirror").setAttribute("aria-pressed", on);
}

// Words

function welcome(text, loading = false) {
  $("welcome").hidden = false;
  $("dock").hidden = true;
  $("fps").hidden = true;
  $("progress-text").textContent = text;
  $("progress").hidden = !loading;
  $("message").hidden = $("anyway").hidden = true;
  $("start").hidden = $("open-file").hidden = loading;
}

function complain(text) {
  welcome("");
  $("message").textContent = text;
  $("message").hidden = false;
  $("start").hidden = $("open-file").hidden = !engine?.proven;
}

function fail(error) {
  halt();
  camera.close();
  complain(error.message);
}

function toast(text) {
  clearTimeout(toast.timer);
  $("toast").textContent = text;
  $("toast").classList.toggle("shown", Boolean(text));
  toast.timer = setTimeout(() => $("toast").classList.remove("shown"), 3000);
}

const megabytes = (bytes, digits = 0) => `${(bytes / 1e6).toFixed(digits)} MB`;

// Classes

function showClasses() {
  $("classes").replaceChildren(...engine.entry.classes.map(({ name, color }, id) => {
    const button = document.createElement("button");
    button.append(document.createElement("i"), name, document.createElement("b"));
    button.style.setProperty("--swatch", id ? `rgb(${color})` : "#888");
    button.setAttribute("aria-pressed", false);
    button.onclick = () => choose(id);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

/** See one class alone; the same again, or the background, stands for all. */
function choose(id) {
  view.chosen = id === view.chosen || id === 0 ? null : id;
  [...$("classes").querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-pressed", i === view.chosen));
  toast(view.chosen === null ? "All classes" : engine.entry.classes[id].name);
}

// Figures, four times a second: faster cannot be read

function showFigures() {
  if (!running || !latest) return;
  const { p50, p95 } = meter.model;
  const fps = meter.fps(performance.now());
  const tell = (id, value, digits, unit) => ($(id).textContent = value === null ? "–" : `${value.toFixed(digits)}${unit}`);
  tell("figure-fps", fps, 1, "");
  tell("figure-p50", p50, 1, " ms");
  tell("figure-p95", p95, 1, " ms");
  tell("figure-heap", latest.heap / 1e6, 0, " MB");
  tell("figure-script", scriptMemory(), 0, " MB");
  $("figure-picture").textContent = `${latest.picture.width}×${latest.picture.height}`;
  $("fps").hidden = fps === null;
  $("fps").textContent = fps === null ? "" : `${fps.toFixed(1)} FPS · ${p50.toFixed(0)} ms`;
  [...$("classes").querySelectorAll("button")].forEach((button, id) => {
    button.style.setProperty("--share", latest.shares[id]);
    button.lastChild.textContent = `${(100 * latest.shares[id]).toFixed(1)} %`;
  });
}

// Pictures and recordings

async function takeSnapshot() {
  toast(await deliver(await snapshot($("picture")), fileName("jpg")));
}

async function toggleRecording() {
  $("do-record").setAttribute("aria-pressed", !recorder.running);
  if (!recorder.running) return recorder.start($("picture"));
  toast(await deliver(await recorder.stop(), fileName(Recorder.format[1])));
}

// The benchmark

async function runBenchmark() {
  if (measuring) return (measuring = false); // the same button stops it
  if (!engine?.proven) return ($("benchmark-result").textContent = "The model must pass its self-check first.");
  const live = running;
  halt();
  camera.pause();
  await wakeLock.set(true);
  measuring = true;
  benchmarking(true);
  const seconds = Number($("benchmark").dataset.seconds);
  const report = await benchmark(engine, site.litert, seconds, (part, trend) => {
    $("benchmark-progress").value = part;
    $("trend").firstElementChild.setAttribute("points", sparkline(trend));
    return measuring && !document.hidden;
  }).catch(() => null);
  measuring = false;
  benchmarking(false);
  await wakeLock.set(false);
  showReport(report);
  if (live) await camera.resume().then(run, fail);
}

function benchmarking(on) {
  $("benchmark-run").textContent = on ? "Stop" : "Run for one minute";
  $("benchmark-progress").hidden = !on;
  $("trend").removeAttribute("hidden"); // an SVG has no such property
  $("model").disabled = on;
  $("benchmark-copy").hidden = $("benchmark-save").hidden = true;
  $("benchmark-result").textContent = on ? "Running; leave the page open." : "";
}

function showReport(report) {
  $("benchmark-result").textContent = "Stopped: nothing was kept.";
  if (!report) return;
  const { median_ms, p95_ms } = report.rows[0];
  const { burst_fps, steady_fps } = report.sustained;
  $("benchmark-result").textContent = `Median ${median_ms.toFixed(1)} ms, 95 % within ${p95_ms.toFixed(1)} ms. ` +
    `${burst_fps.toFixed(1)} FPS in the first seconds, ${steady_fps.toFixed(1)} in the last third.`;
  const json = JSON.stringify(report, null, 2);
  $("benchmark-copy").hidden = !navigator.clipboard;
  $("benchmark-save").hidden = false;
  $("benchmark-copy").onclick = () => navigator.clipboard.writeText(json).then(() => toast("Copied."), () => toast("Not allowed."));
  $("benchmark-save").onclick = async () => {
    toast(await deliver(new Blob([json], { type: "application/json" }), fileName("json")));
  };
}

// Buttons

function wireButtons() {
  $("start").onclick = () => startCamera();
  $("anyway").onclick = () => startCamera();
  $("open-file").onclick = () => $("file").click();
  $("file").onchange = ({ target }) => target.files[0] && startCamera(() => camera.openFile(target.files[0]));
  $("do-flip").onclick = () => startCamera(() => camera.flip());
  $("do-mirror").onclick = () => setMirror(!view.mirror);
  $("do-snapshot").onclick = takeSnapshot;
  $("do-record").hidden = !Recorder.format;
  $("do-record").onclick = toggleRecording;
  $("do-stop").onclick = stopCamera;
  $("picture").onclick = (event) => {
    const id = running ? view.classAt(event) : null;
    if (id !== null) choose(id);
  };
  $("choose-backdrop").onclick = () => $("backdrop").click();
  $("backdrop").onchange = async ({ target }) => {
    if (target.files[0]) view.backdrop = await createImageBitmap(target.files[0]).catch(() => null);
  };
  for (const radio of document.querySelectorAll("[name=mode]")) {
    radio.onchange = () => {
      view.mode = radio.value;
      $("backdrop-row").hidden = view.mode !== "replace";
    };
  }
  $("model").onchange = useModel;
  $("benchmark-run").onclick = runBenchmark;
  document.addEventListener("visibilitychange", onVisibility);
  setInterval(showFigures, 250);
}

main().catch((error) => complain(`The page did not start (${error.message}). Reload it.`));
