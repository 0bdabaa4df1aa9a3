/** The page's texts, and the choice between its languages. The page comes with one; en.json and zh.json have all. */

import { $, all, remember } from "./dom.js";

const HTML_LANG = { en: "en", zh: "zh-CN" };

const { dataset } = document.documentElement;

/** @type {"en" | "zh"} */
let language = document.documentElement.lang === HTML_LANG.zh ? "zh" : "en";

/** @type {Record<string, string>} `{name}` is filled in. */
let texts = JSON.parse(dataset.strings ?? "{}");

export const otherLanguage = () => (language === "en" ? "zh" : "en");

/** Load another language's texts, and keep the choice for the next visit: the service reads it from a cookie. */
export async function switchLanguage() {
  const other = otherLanguage();
  const response = await fetch(`playground/${other}.json`);
  if (!response.ok) return;
  texts = await response.json();
  language = other;
  document.documentElement.lang = HTML_LANG[language];
  remember("language", language);
}

/** Write the texts that the page always has. */
export function describePage() {
  document.title = t("title");
  $("language").lang = HTML_LANG[otherLanguage()];
  for (const element of all("[data-placeholder]")) {
    element.setAttribute("placeholder", t(element.dataset.placeholder ?? ""));
  }
  for (const element of all("[data-text]")) element.textContent = t(element.dataset.text ?? "");
  for (const element of all("[data-label]")) {
    element.ariaLabel = t(element.dataset.label ?? "");
    if (element.matches("button")) element.title = element.ariaLabel;
  }
  for (const element of all("[data-region]")) element.ariaLabel = t(element.dataset.region ?? "");
}

/** Join sentences; Chinese has no space after a full stop. @param {...string} parts */
export const sentences = (...parts) => parts.join(language === "zh" ? "" : " ");

/** Format a number in the current language. @param {number} number */
export const written = (number) => number.toLocaleString(HTML_LANG[language]);

/** Return a text of the page. @param {string} key @param {Record<string, string | number>} [values] */
export function t(key, values = {}) {
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
