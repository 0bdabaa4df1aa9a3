/** The page's elements, by id. */

export const $ = (id) => document.getElementById(id);

/** Make a button that calls `act`. */
export function buttonFor(content, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(content);
  button.addEventListener("click", act);
  return button;
}
