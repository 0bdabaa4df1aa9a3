/** Parts of the page that are loaded when they are first used. */

import { toast } from "./dom.js";
import { t } from "./strings.js";

/**
 * Load a part. If the service cannot be reached, say so, and return null; the next use tries again.
 *
 * @template Part @param {() => Promise<Part>} load Imports it. @returns {Promise<Part | null>}
 */
export async function part(load) {
  try {
    return await load();
  } catch {
    toast(t("offline"));
    return null;
  }
}
