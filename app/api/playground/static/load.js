/** Loads the page's scripts after its first paint, which they would delay. A page in the background is not painted. */

const load = () => import("./playground.js");

if (document.hidden) load();
else requestAnimationFrame(() => setTimeout(load));
