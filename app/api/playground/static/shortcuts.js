/** Single keys for buttons: each button names its key in `data-key`, and the list of keys is made from that. */

import { $, all } from "./dom.js";
import { t } from "./strings.js";

/** Elements that take letters themselves. */
const FIELDS = "textarea, select, input:not([type=radio], [type=range], [type=checkbox], [type=color])";

let isOn = true;

/** Speech input may say letters that nobody typed, so the keys can be switched off. @param {boolean} on */
export function switchShortcuts(on) {
  isOn = on;
}

const buttons = () => all("[data-key]");

/** @param {KeyboardEvent} event */
function press(event) {
  const { key, ctrlKey, metaKey, altKey } = event;
  const target = /** @type {Element} */ (event.target);
  const writes = target.matches(FIELDS);
  if (event.defaultPrevented || writes || document.querySelector("dialog[open]")) return;
  const name = ctrlKey || metaKey ? `ctrl+${event.shiftKey ? "shift+" : ""}${key.toLowerCase()}` : key;
  if (altKey || (!isOn && name === key)) return;
  const found = buttons().find((button) => button.dataset.key?.split(" ").includes(name) && button.checkVisibility());
  if (!found) return;
  event.preventDefault();
  if (found.matches("input, textarea")) found.focus();
  else found.click();
}

document.addEventListener("keydown", press);

/** Write the list of keys, and each key in its button's title, in the current language. */
export function describeShortcuts() {
  const rows = buttons().map((button) => {
    const { key = "", keyText, label, text } = button.dataset;
    const keys = key.split(" ");
    button.setAttribute("aria-keyshortcuts", keys.join(" ").replaceAll("ctrl", "Control").replaceAll("shift", "Shift"));
    const [row, term, meaning] = ["div", "dt", "dd"].map((name) => document.createElement(name));
    const cap = document.createElement("kbd");
    cap.textContent = keys[0].replaceAll("+", " ").trim().toUpperCase() || keys[0];
    if (label) button.title = `${button.ariaLabel} (${cap.textContent})`;
    term.append(cap);
    meaning.textContent = t(keyText ?? label ?? text ?? "");
    row.append(term, meaning);
    return row;
  });
  $("keys").replaceChildren(...rows);
}
