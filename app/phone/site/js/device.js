// What the page asks of the device: to keep it offline, to keep the screen on, to be installed.

/** Let the service worker keep the site, and wait until it sees what the page fetches; false where it may not. */
export async function keepOffline() {
  if (!navigator.serviceWorker) return false;
  try {
    await navigator.serviceWorker.register("service-worker.js");
  } catch {
    return false; // a certificate the browser does not trust, or a private window
  }
  if (!navigator.serviceWorker.controller) {
    const taken = new Promise((resolve) => (navigator.serviceWorker.oncontrollerchange = resolve));
    await Promise.race([taken, new Promise((resolve) => setTimeout(resolve, 5000))]);
  }
  return Boolean(navigator.serviceWorker.controller);
}

/** Keeps the screen from dimming while `on`; the browser drops the lock whenever the page is hidden. */
export class WakeLock {
  #lock = null;

  async set(on) {
    await this.#lock?.release().catch(() => {});
    this.#lock = on ? ((await navigator.wakeLock?.request("screen").catch(() => null)) ?? null) : null;
  }
}

/** Show the button once the browser offers installation, and pass the offer on when it is pressed. */
export function offerInstall(button) {
  window.addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    button.hidden = false;
    button.onclick = () => event.prompt();
  });
  window.addEventListener("appinstalled", () => (button.hidden = true));
}
