// What the visitor takes home: pictures, recordings, figures.

const RECORDINGS = [
  ["video/mp4;codecs=avc1.42E01E", "mp4"],
  ["video/webm;codecs=vp9", "webm"],
  ["video/webm", "webm"],
];

/** Share a file where the device has a share sheet for it, else download it; "" if the visitor thinks better of it. */
export async function deliver(blob, name) {
  const file = new File([blob], name, { type: blob.type.split(";")[0] });
  if (matchMedia("(pointer: coarse)").matches && navigator.canShare?.({ files: [file] })) {
    try {
      await navigator.share({ files: [file] });
      return "Shared.";
    } catch (error) {
      if (error.name === "AbortError") return "";
    }
  }
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return `Saved as ${name}.`;
}

/** The canvas as a picture. */
export function snapshot(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** A name for a new file: edge-segmenter-2030-01-31-235959.jpg */
export function fileName(ending) {
  const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString();
  return `edge-segmenter-${now.slice(0, 19).replace("T", "-").replaceAll(":", "")}.${ending}`;
}

export class Recorder {
  #recorder = null;

  /** Whether this browser can record a canvas, and as what. */
  static get format() {
    if (!window.MediaRecorder || !HTMLCanvasElement.prototype.captureStream) return undefined;
    return RECORDINGS.find(([type]) => MediaRecorder.isTypeSupported(type));
  }

  get running() {
    return this.#recorder !== null;
  }

  start(canvas) {
    const [mimeType] = Recorder.format;
    this.#recorder = new MediaRecorder(canvas.captureStream(30), { mimeType, videoBitsPerSecond: 4_000_000 });
    this.parts = [];
    this.#recorder.ondataavailable = ({ data }) => this.parts.push(data);
    this.#recorder.start(1000);
  }

  /** End the recording: the video. */
  stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    return new Promise((resolve) => {
      recorder.onstop = () => resolve(new Blob(this.parts, { type: recorder.mimeType }));
      recorder.stop();
      recorder.stream.getTracks().forEach((track) => track.stop());
    });
  }
}
