/** The page's elements, which all have an id where a script has to find them. */

export const $ = (id) => document.getElementById(id);

/** Make a button that does something. */
export function buttonFor(content, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(content);
  button.addEventListener("click", act);
  return button;
}
