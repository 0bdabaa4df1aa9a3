/** The strip of the last results, kept in memory only. */

import { buttonFor } from "./dom.js";
import { release } from "./service.js";
import { t } from "./strings.js";

const MOST = 30;

export class History {
  #list;
  #show;
  #results = []; // newest first, as in the list

  /**
   * @param list The element that contains the results.
   * @param show (result) => void: shows a result again.
   */
  constructor(list, show) {
    this.#list = list;
    this.#show = show;
  }

  has(result) {
    return this.#results.includes(result);
  }

  /** Keep the result that is on the stage. */
  add(result) {
    this.#results.unshift(result);
    const thumbnail = new Image();
    thumbnail.src = result.pictures[0].url;
    thumbnail.alt = "";
    const button = buttonFor(thumbnail, () => this.#show(result));
    if (result.pictures.length > 1) button.dataset.number = result.pictures.length;
    const item = document.createElement("li");
    item.append(button);
    this.#list.prepend(item);
    for (const old of this.#results.splice(MOST)) {
      release(old);
      this.#list.lastElementChild.remove();
    }
  }

  /** Describe each result in the current language, and mark the one on the stage. */
  describe(shown) {
    this.#results.forEach((result, index) => {
      const button = this.#list.children[index].firstElementChild;
      const { prompt } = result.state;
      button.ariaLabel = t("history_item", { prompt, seed: result.pictures[0].seed });
      button.title = prompt;
      if (result === shown) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
  }
}
