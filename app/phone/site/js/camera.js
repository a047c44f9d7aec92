// Where pictures come from: a camera, or a photo or video that the visitor opens.

const IDEAL = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };

const INSECURE =
  "Browsers give the camera only to secure pages. Open this page by its https:// address, or on the machine " +
  "itself as http://localhost. (Locally: python run_demo.py phone --https)";

const REASONS = {
  NotAllowedError:
    "The camera was refused. Allow it for this page in the browser's site settings (often the icon beside the " +
    "address), then start again.",
  NotFoundError: "No camera was found. Connect one and start again, or open a photo or video instead.",
  NotReadableError: "The camera is in use by another app. Close that app, then start again.",
  OverconstrainedError: "This camera cannot deliver a usable picture. Try another one, or open a photo or video.",
};

export class Camera {
  facing = "user";
  #video;
  #image = null;
  #stream = null;

  constructor(video) {
    this.#video = video;
  }

  /** What can be drawn at the moment, with its size in pixels; null before the first frame. */
  get picture() {
    if (this.#image) return { source: this.#image, width: this.#image.width, height: this.#image.height };
    const { videoWidth: width, videoHeight: height, readyState } = this.#video;
    return width && readyState >= 2 ? { source: this.#video, width, height } : null;
  }

  /** Whether the picture is a camera's that shows its own user: such pictures are mirrored. */
  get selfie() {
    return this.#stream !== null && this.facing === "user";
  }

  get live() {
    return this.#stream !== null;
  }

  /** Open the front ("user") or rear ("environment") camera; rejects with a sentence for the visitor. */
  async open(facing = this.facing) {
    if (!window.isSecureContext || !navigator.mediaDevices?.getUserMedia) throw new Error(INSECURE);
    this.close(); // phones open one camera at a time
    try {
      const video = { ...IDEAL, facingMode: { ideal: facing } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The camera did not start (${error.message}). Start again.`);
    }
    const told = this.#stream.getVideoTracks()[0].getSettings().facingMode;
    this.facing = told ?? facing;
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  /** Change between front and rear. */
  flip() {
    return this.open(this.facing === "user" ? "environment" : "user");
  }

  /** Show a photo or video from the visitor's device instead of a camera. */
  async openFile(file) {
    this.close();
    if (file.type.startsWith("image/")) {
      this.#image = await createImageBitmap(file, { resizeQuality: "high" }).then(reduce);
      return;
    }
    this.#video.src = URL.createObjectURL(file);
    this.#video.loop = true;
    await this.#video.play().catch(() => {
      throw new Error(`This browser cannot play ${file.name}. Open a photo, or a video as MP4 or WebM.`);
    });
  }

  /** Pause: the camera delivers nothing until `resume`, and its light may go out. */
  pause() {
    this.#stream?.getTracks().forEach((track) => (track.enabled = false));
    this.#video.pause();
  }

  /** Go on; a camera that the system took away meanwhile is opened again. */
  async resume() {
    if (this.#stream?.getTracks().some((track) => track.readyState === "ended")) return this.open();
    this.#stream?.getTracks().forEach((track) => (track.enabled = true));
    if (!this.#image) await this.#video.play();
  }

  close() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#video.src) URL.revokeObjectURL(this.#video.src);
    this.#image?.close();
    this.#stream = this.#image = this.#video.srcObject = null;
    this.#video.removeAttribute("src");
    this.#video.load(); // else the last frame of a video file stays
  }
}

/** Scale a large photo to 1280 pixels: more than the screen shows would only cost time. */
async function reduce(bitmap) {
  const scale = Math.min(1, 1280 / Math.max(bitmap.width, bitmap.height));
  const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) => Math.round(side * scale));
  return createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
}
