// Keeps the site for use without a network: each file under its content's hash, so nothing unchanged is fetched twice.

const FILES = {}; // path -> first 16 hex digits of its SHA-256; the export fills this in

const SCOPE = new URL(self.registration.scope);
const CACHE = `edge-segmenter ${SCOPE.pathname}`; // an origin may carry several exports, each in its own folder
const LARGE = /^(models|litert)\//; // kept when first used: a visitor needs one model and one build

const key = (path) => new URL(`${path}?${FILES[path]}`, SCOPE).href;

self.addEventListener("install", (event) => {
  self.skipWaiting(); // a page that runs has all it needs
  event.waitUntil(Promise.all(Object.keys(FILES).filter((path) => !LARGE.test(path)).map(provide)));
});

self.addEventListener("activate", (event) => event.waitUntil(forgetOld().then(() => self.clients.claim())));

self.addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  if (event.request.method !== "GET" || origin !== SCOPE.origin || !pathname.startsWith(SCOPE.pathname)) return;
  const path = pathname.slice(SCOPE.pathname.length) || "index.html";
  if (path in FILES) event.respondWith(provide(path));
});

async function provide(path) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(key(path));
  if (kept) return kept;
  const response = await fetch(new URL(path, SCOPE), { cache: "no-cache" });
  if (response.ok && (await digest(response.clone())) === FILES[path]) {
    await cache.put(key(path), response.clone()).catch(() => {}); // the disk may be full: then it is only not kept
  }
  return response;
}

async function digest(response) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await response.arrayBuffer()));
  return Array.from(hash.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function forgetOld() {
  const cache = await caches.open(CACHE);
  const current = new Set(Object.keys(FILES).map(key));
  const old = (await cache.keys()).filter((request) => !current.has(request.url));
  await Promise.all(old.map((request) => cache.delete(request)));
}
