// The parts of the page that Gradio has no components for: <edge-live>, the visitor's camera segmented by the server,
// and <edge-camera>, the server's own. Both fetch one JPEG a request and draw the newest; nothing queues. <edge-join>
// shows how a phone gets here.

const SIDE = 640; // px, of the longer side of the frames sent
const QUALITY = 0.8; // of their JPEGs
const AT_ONCE = 2; // frames under way: while the network has one, the next travels
const RETRY = 1000; // ms after a failure
const KEPT = 120; // frames that the figures look back on

const ICONS = {
  flip: "M20 12a8 8 0 0 1-14.3 4.9M4 12A8 8 0 0 1 18.3 7.1M18.5 3v4.3h-4.3M5.5 21v-4.3h4.3",
  mirror: "M12 3v18M9 7 3.5 17.5H9zM15 7l5.5 10.5H15z",
  stop: "M7 7h10v10H7z",
  shot: "M4 8.5h3l1.5-2.5h7L17 8.5h3v10H4zM12 16.5a3.2 3.2 0 1 0 0-6.4 3.2 3.2 0 0 0 0 6.4",
};

const REASONS = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser's site settings, then start again.",
  NotFoundError: "No camera was found. Connect one, or take the Picture tab.",
  NotReadableError: "The camera is in use by another program. Close that, then start again.",
};
const INSECURE =
  "Browsers give the camera only to secure pages. Start the server with --https and open its https:// address, or open " +
  "the page on the machine itself as http://localhost.";

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
const visible = (element) => !document.hidden && element.offsetParent !== null;
const fix = (value, digits = 0) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

/** Rates over intervals and percentiles of the last frames. */
class Recent {
  #marks = [];

  add(value) {
    this.#marks.push([performance.now(), value]);
    if (this.#marks.length > KEPT) this.#marks.shift();
  }

  get fps() {
    const recent = this.#marks.filter(([at]) => at > performance.now() - 3000);
    return recent.length > 1 ? ((recent.length - 1) * 1000) / (recent.at(-1)[0] - recent[0][0]) : NaN;
  }

  percentile(share) {
    const sorted = this.#marks.map(([, value]) => value).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : NaN;
  }

  clear() {
    this.#marks = [];
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  if (response.status === 401) location.reload(); // the login page
  if (!response.ok) {
    const told = await response.json().catch(() => ({}));
    throw Object.assign(new Error(told.error ?? `The server answered ${response.status}.`), { told: true });
  }
  return response;
}

/** What both elements share: a stage with a canvas, pills, words over it, and a dock of buttons. */
class Stage extends HTMLElement {
  $(name) {
    return this.querySelector(`[data-id=${name}]`);
  }

  stage(title, action) {
    return `
      <section class="stage" aria-label="${title}">
        <canvas data-id="picture" width="640" height="480" role="img" aria-label="${title}"></canvas>
        <div class="hud"><span class="pill" data-id="left" hidden></span><span class="pill" data-id="right" hidden></span></div>
        <div class="welcome" data-id="welcome">
          <p data-id="words" role="status"></p>
          <button class="go" data-id="start">${action}</button>
        </div>
        <div class="dock" data-id="dock" hidden></div>
      </section>`;
  }

  /** Words over the stage, with the button; none of both while pictures come. */
  say(text, button = true) {
    this.$("welcome").hidden = !text;
    this.$("words").textContent = text;
    this.$("start").hidden = !button;
    this.$("dock").hidden = Boolean(text);
  }

  pill(name, text) {
    this.$(name).hidden = !text;
    this.$(name).textContent = text;
  }

  async draw(blob) {
    const bitmap = await createImageBitmap(blob);
    const canvas = this.$("picture");
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
      this.style.setProperty("--ratio", bitmap.width / bitmap.height);
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  }

  /** Where in the picture a click was, in pixels. */
  place(event, mirrored = false) {
    const { left, top, width, height } = this.$("picture").getBoundingClientRect();
    const across = (event.clientX - left) / width;
    return {
      x: Math.floor((mirrored ? 1 - across : across) * this.$("picture").width),
      y: Math.floor(((event.clientY - top) / height) * this.$("picture").height),
    };
  }

  save() {
    this.$("picture").toBlob((blob) => {
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "segmented.jpg" });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/jpeg", 0.92);
  }
}

class EdgeLive extends Stage {
  #video = Object.assign(document.createElement("video"), { playsInline: true, muted: true });
  #canvas = document.createElement("canvas");
  #stream = null;
  #facing = "user";
  #ground = null; // the JPEG chosen as background: the server forgets it with the visitor
  #visitor = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  #chosen = new Set();
  #classes = [];
  #model = "";
  #trip = new Recent();
  #network = new Recent();
  #sent = 0;
  #shown = 0;
  #told = null;
  #run = 0; // counts starts: a loop of an earlier one ends

  connectedCallback() {
    if (this.childElementCount) return; // moved in the page
    const { modes, models } = JSON.parse(this.dataset.setup);
    this.models = models;
    this.innerHTML = `<div class="live">${this.stage("Your camera, segmented", "Start the camera")}${panel(modes)}</div>`;
    this.$("dock").innerHTML = `
      <button data-id="flip" title="Front or rear camera" aria-label="Front or rear camera">${icon("flip")}</button>
      <button data-id="mirror" title="Mirror" aria-label="Mirror" aria-pressed="false">${icon("mirror")}</button>
      <button data-id="shot" title="Save the picture" aria-label="Save the picture">${icon("shot")}</button>
      <button data-id="stop" title="Stop the camera" aria-label="Stop the camera">${icon("stop")}</button>`;
    this.querySelector(".stage").append(this.#video);
    this.say("Your camera's pictures go to this server, and come back coloured.");
    this.#wire();
    this.#follow();
    this.timer = setInterval(() => this.#tell(), 250);
    this.leaving = () => this.#leave();
    addEventListener("pagehide", this.leaving);
  }

  disconnectedCallback() {
    this.#halt();
    this.#leave();
    clearInterval(this.timer);
    removeEventListener("pagehide", this.leaving);
  }

  async #start(facing = this.#facing) {
    this.#halt();
    const run = this.#run;
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) return this.say(INSECURE, false);
    this.say("Waiting for the camera …", false);
    try {
      const video = { width: { ideal: SIDE }, height: { ideal: 480 }, frameRate: { ideal: 30 }, facingMode: { ideal: facing } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      return this.say(REASONS[error.name] ?? `The camera did not start (${error.message}).`);
    }
    const [track] = this.#stream.getVideoTracks();
    this.#facing = track.getSettings().facingMode ?? facing;
    track.onended = () => this.#stop();
    this.#video.srcObject = this.#stream;
    await this.#video.play();
    this.#mirror(this.#facing === "user");
    await this.#remind();
    for (let i = 0; i < AT_ONCE; i++) this.#loop(run);
  }

  /** One of the loops: take the newest frame, have it drawn, show it if nothing newer was shown meanwhile. */
  async #loop(run) {
    while (run === this.#run) {
      if (!visible(this)) {
        await wait(200);
        if (visible(this)) await this.#remind();
        continue;
      }
      await this.#newFrame();
      const taken = performance.now();
      const number = ++this.#sent;
      try {
        const jpeg = await this.#capture();
        const response = await ask(`live/frame?${this.#wish()}`, { method: "POST", body: jpeg });
        if (response.status !== 200) continue; // overtaken by a newer one
        const blob = await response.blob();
        if (run !== this.#run || number < this.#shown) continue;
        this.#shown = number;
        await this.draw(blob);
        this.#told = JSON.parse(response.headers.get("X-Result"));
        this.#trip.add(performance.now() - taken);
        this.#network.add(this.#told.model_ms);
        if (!this.$("welcome").hidden) this.say("");
      } catch (error) {
        if (run !== this.#run) return;
        this.say(error.told ? error.message : "The server does not answer; trying again …", false);
        await wait(RETRY);
      }
    }
  }

  /** Wait for the camera's next frame; the other loop must not take the same one. */
  #newFrame() {
    const next = (this.turn ?? Promise.resolve()).then(() => new Promise((resolve) => {
      if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(resolve);
      else requestAnimationFrame(resolve);
      setTimeout(resolve, 500);
    }));
    this.turn = next;
    return next;
  }

  #capture() {
    const { videoWidth, videoHeight } = this.#video;
    const scale = Math.min(1, SIDE / Math.max(videoWidth, videoHeight));
    const canvas = this.#canvas;
    canvas.width = Math.round(videoWidth * scale);
    canvas.height = Math.round(videoHeight * scale);
    canvas.getContext("2d").drawImage(this.#video, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve, reject) => {
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture"))), "image/jpeg", QUALITY);
    });
  }

  #wish() {
    const on = (name) => Number(this.$(name).checked);
    return new URLSearchParams({
      visitor: this.#visitor,
      model: this.#model,
      mode: this.querySelector("[name=edge-mode]:checked").value,
      opacity: this.$("opacity").value,
      contour: on("contour"),
      smooth: on("smooth"),
      edges: on("edges"),
      classes: [...this.#chosen],
      background: this.$("colour").value,
    });
  }

  #halt() {
    this.#run += 1;
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = this.#video.srcObject = this.#told = null;
    this.#trip.clear();
    this.#network.clear();
  }

  #stop() {
    this.#halt();
    this.#leave();
    this.pill("left", "");
    this.pill("right", "");
    this.say("The camera is off.");
  }

  #leave() {
    navigator.sendBeacon(`live/leave?visitor=${this.#visitor}`);
  }

  #mirror(on) {
    this.classList.toggle("mirrored", on);
    this.$("mirror").setAttribute("aria-pressed", on);
  }

  /** The model chosen on the page: its classes are what can be chosen here. */
  #follow() {
    const name = window.edgeModel ?? Object.keys(this.models)[0];
    if (name === this.#model) return;
    this.#model = name;
    this.#classes = this.models[name] ?? [];
    this.#chosen.clear();
    this.$("classes").replaceChildren(...this.#classes.map(({ name, color }, id) => {
      const item = document.createElement("button");
      item.append(document.createElement("i"), name, document.createElement("b"));
      item.style.setProperty("--swatch", id ? color : "#8884");
      item.onclick = () => this.#choose(id);
      return item;
    }));
    this.#choose(0);
  }

  /** Add a class to those the picture is about, or take it away; the background stands for all. */
  #choose(id) {
    if (id === 0) this.#chosen.clear();
    else if (!this.#chosen.delete(id)) this.#chosen.add(id);
    [...this.$("classes").children].forEach((item, i) => item.setAttribute("aria-pressed", this.#chosen.has(i)));
  }

  /** The figures, four times a second: faster cannot be read. */
  #tell() {
    this.#follow();
    if (!this.#told) return;
    const fps = this.#trip.fps;
    const median = this.#trip.percentile(0.5);
    this.pill("left", Number.isFinite(fps) ? `${fix(fps, 1)} FPS` : "");
    this.pill("right", `${fix(median)} ms`);
    const figures = {
      fps: fix(fps, 1),
      model: `${fix(this.#network.percentile(0.5), 1)} ms`,
      median: `${fix(median)} ms`,
      slow: `${fix(this.#trip.percentile(0.95))} ms`,
      memory: `${fix(this.#told.memory_mb)} MB`,
      visitors: this.#told.visitors,
    };
    for (const [name, text] of Object.entries(figures)) this.$(`figure-${name}`).textContent = text;
    [...this.$("classes").children].forEach((item, id) => {
      const share = this.#told.shares[id] ?? 0;
      item.style.setProperty("--share", share);
      item.lastChild.textContent = `${fix(100 * share, 1)} %`;
    });
  }

  async #backdrop(file) {
    const bitmap = await createImageBitmap(file).catch(() => null);
    if (!bitmap) return;
    const scale = Math.min(1, 1280 / Math.max(bitmap.width, bitmap.height));
    const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width * scale, height: bitmap.height * scale });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    this.#ground = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
    await this.#remind();
  }

  /** Send the background again: whoever was silent for a while is new to the server. */
  async #remind() {
    if (this.#ground) await this.#send(this.#ground);
  }

  #send(jpeg) {
    return ask(`live/backdrop?visitor=${this.#visitor}`, { method: "POST", body: jpeg }).catch((error) => this.say(error.message));
  }

  #wire() {
    this.$("start").onclick = () => this.#start();
    this.$("stop").onclick = () => this.#stop();
    this.$("flip").onclick = () => this.#start(this.#facing === "user" ? "environment" : "user");
    this.$("mirror").onclick = () => this.#mirror(!this.classList.contains("mirrored"));
    this.$("shot").onclick = () => this.save();
    this.$("picture").onclick = async (event) => {
      if (!this.#told) return;
      const { x, y } = this.place(event, this.classList.contains("mirrored"));
      const found = await ask(`live/class?visitor=${this.#visitor}&x=${x}&y=${y}`).catch(() => null);
      if (found) this.#choose(await found.json());
    };
    this.$("backdrop").onchange = ({ target }) => target.files[0] && this.#backdrop(target.files[0]);
    this.$("colour").oninput = () => {
      this.#ground = null;
      this.$("backdrop").value = ""; // the same picture may be chosen again
      this.#send(new Blob());
    };
    for (const radio of this.querySelectorAll("[name=edge-mode]")) {
      radio.onchange = () => this.setAttribute("mode", radio.value);
    }
    this.setAttribute("mode", "overlay");
  }
}

/** Modes, classes and figures beside the stage; `modes` maps each mode to the word for it. */
function panel(modes) {
  const options = Object.entries(modes).map(([mode, word], i) => `
    <label><input type="radio" name="edge-mode" value="${mode}" ${i ? "" : "checked"}><span>${word}</span></label>`);
  const figure = (id, name, hint = "") => `<div title="${hint}"><dt>${name}</dt><dd data-id="figure-${id}">–</dd></div>`;
  const toggle = (id, name, on) => `<label class="toggle"><input type="checkbox" data-id="${id}" ${on ? "checked" : ""}>${name}</label>`;
  return `
    <div class="panel">
      <fieldset class="modes"><legend>Picture</legend>${options.join("")}</fieldset>
      <div class="options">
        <label class="fade">Opacity <input type="range" data-id="opacity" min="0" max="100" value="50"></label>
        <span class="ground"><label>Background <input type="color" data-id="colour" value="#28a060"></label>
          <label class="file">or a picture <input type="file" data-id="backdrop" accept="image/*"></label></span>
        ${toggle("contour", "Outlines", false)}${toggle("smooth", "Steady", true)}${toggle("edges", "Sharp edges", true)}
      </div>
      <section><h3>Classes</h3><div class="classes" data-id="classes"></div>
        <p class="note">Tap classes, here or in the picture, to choose them.</p></section>
      <section><h3>Figures</h3><dl class="figures">
        ${figure("fps", "Frames/s", "Pictures that came back a second, over the last three")}
        ${figure("model", "Model", "The network alone, median")}
        ${figure("median", "Latency", "From the browser's frame to its mask on the screen: median")}
        ${figure("slow", "95 % within", "From the browser's frame to its mask on the screen: 95th percentile")}
        ${figure("memory", "Server", "Memory of the server's process (RSS)")}
        ${figure("visitors", "Cameras", "Open on this server now, yours included")}
      </dl></section>
    </div>`;
}

class EdgeCamera extends Stage {
  connectedCallback() {
    if (this.childElementCount) return;
    const keys = Object.entries(JSON.parse(this.dataset.keys));
    const buttons = keys.map(([key, word]) => `<button data-key="${key}">${word}</button>`);
    this.innerHTML = `${this.stage("The camera of this machine", "Look")}<div class="keys">${buttons.join("")}</div>`;
    this.viewer = Math.random().toString(36).slice(2);
    this.number = 0;
    this.watching = true;
    this.say("Waiting for the camera …", false);
    for (const button of this.querySelectorAll("[data-key]")) {
      button.onclick = () => ask(`camera/press?key=${encodeURIComponent(button.dataset.key)}`, { method: "POST" });
    }
    this.$("picture").onclick = (event) => {
      const { x, y } = this.place(event);
      ask(`camera/click?x=${x}&y=${y}`, { method: "POST" });
    };
    this.#watch();
  }

  disconnectedCallback() {
    this.watching = false;
  }

  async #watch() {
    const rate = new Recent();
    while (this.watching) {
      if (!visible(this)) {
        await wait(200);
        continue;
      }
      try {
        const response = await ask(`camera/frame?after=${this.number}&viewer=${this.viewer}`);
        if (response.status !== 200) continue;
        const told = JSON.parse(response.headers.get("X-Result"));
        this.number = told.number;
        await this.draw(await response.blob());
        this.say("");
        this.$("dock").hidden = true;
        rate.add(0);
        this.pill("right", `${fix(rate.fps, 1)} FPS · ${told.viewers} watching`);
      } catch {
        this.say("The camera of this machine does not answer; trying again …", false);
        this.number = 0;
        await wait(RETRY);
      }
    }
  }
}

/** How a phone gets here: words and a QR code from the server, which knows its address. */
class EdgeJoin extends HTMLElement {
  async connectedCallback() {
    this.innerHTML = await (await ask("page/join")).text();
  }
}

customElements.define("edge-join", EdgeJoin);
customElements.define("edge-live", EdgeLive);
customElements.define("edge-camera", EdgeCamera);
