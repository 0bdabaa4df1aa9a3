/**
 * Ideas for prompts: examples, styles to add, and random prompts.
 *
 * The demo model's were chosen by their pictures. Its seeds decide only a background that the prompt leaves open, so
 * the examples name neither a background nor a time of day.
 */

/** @typedef {{key: string, text: string}} Style A label's key in strings.js, and what is added to the prompt. */

const EXAMPLES = [
  "A cinematic shot of a baby racoon wearing an intricate italian priest robe.",
  "a lighthouse on a cliff in a storm, oil painting",
  "a house in an enchanted forest",
  "a city of the future above the clouds",
  "a bowl of fruit on a wooden table",
];
const DEMO_EXAMPLES = [
  "a white rabbit",
  "a panda with a crown",
  "a house by the sea",
  "a red heart",
  "a white star above a blue circle",
];

const STYLES = [
  { key: "style_oil", text: ", oil painting" },
  { key: "style_watercolour", text: ", watercolor painting" },
  { key: "style_photo", text: ", photograph, 35 mm film" },
  { key: "style_anime", text: ", anime style" },
  { key: "style_pixel", text: ", pixel art" },
  { key: "style_isometric", text: ", isometric 3D render" },
  { key: "style_pencil", text: ", pencil sketch" },
  { key: "style_neon", text: ", cyberpunk, neon lights" },
];
/** Each changes every kind of picture. Snow would change only landscapes. */
const DEMO_STYLES = [
  { key: "style_night", text: ", at night" },
  { key: "style_sunset", text: ", at sunset" },
  { key: "style_pastel", text: ", pastel" },
  { key: "style_monochrome", text: ", black and white" },
  { key: "style_on_black", text: ", on a black background" },
  { key: "style_on_purple", text: ", on a purple background" },
  { key: "style_on_green", text: ", on a green background" },
];

/** A surprise has one of each line. */
const SUBJECT = "a fox|a tiny dragon|an old sailing ship|a balloon|a robot|a steam train|a cat|a castle|an owl";
const PLACE = "in a misty forest|on a snowy mountain|by a quiet lake|among flowers|above the clouds|in a desert";
const MOMENT = "at sunrise|at dusk|in the rain|in moonlight|in autumn|on a foggy morning";

const ANIMAL = "raccoon|cat|fox|panda|bear|rabbit|kitten|bunny";
const WEARING = "with a scarf|with a crown|with a hat|with a blue scarf|wearing a robe|wearing a red robe";
const COLOUR = "red|yellow|green|blue|purple|pink|white|black";
const SHAPE = "circle|square|triangle|star|heart|diamond|hexagon|ring|cross|crescent";
const RELATION = "above|below|left of|right of";
const SCENE = "mountains|the sea|a forest|a house|snow";
const TIME = "|| at sunset| at night";

/** @param {boolean} isDemo @returns {string[]} */
export const examplesOf = (isDemo) => (isDemo ? DEMO_EXAMPLES : EXAMPLES);

/** @param {boolean} isDemo @returns {Style[]} */
export const stylesOf = (isDemo) => (isDemo ? DEMO_STYLES : STYLES);

/** Return a random prompt, for the demo model of words that it knows. @param {boolean} isDemo @returns {string} */
export function surprise(isDemo, random = Math.random) {
  /** @param {string} names @param {string} [not] */
  const one = (names, not) => {
    const left = names.split("|").filter((name) => name !== not);
    return left[Math.floor(random() * left.length)];
  };
  if (!isDemo) return `${one(SUBJECT)} ${one(PLACE)} ${one(MOMENT)}${one(STYLES.map(({ text }) => text).join("|"))}`;
  const kind = one("animal|scene|shapes");
  if (kind === "animal") return `a ${one(ANIMAL)} ${one(WEARING)}`;
  const first = one(kind === "scene" ? SCENE : COLOUR);
  if (kind === "scene") return `${first} and ${one(SCENE, first)}${one(TIME)}`;
  return `a ${first} ${one(SHAPE)} ${one(RELATION)} a ${one(COLOUR, first)} ${one(SHAPE)}`;
}

/** At the prompt's start, a style has no comma. @param {string} text */
const patternOf = (text) => new RegExp(`(^\\s*|,\\s*)${text.replace(/^, /, "")}(?=\\s*([.,;!?]|$))`, "i");

/** @param {string} prompt @param {string} text */
export const hasStyle = (prompt, text) => patternOf(text).test(prompt);

/** Add a style, before a full stop, or remove it. @param {string} prompt @param {string} text */
export function toggleStyle(prompt, text) {
  const found = patternOf(text).exec(prompt);
  if (found) {
    const rest = prompt.slice(found.index + found[0].length);
    return found.index ? prompt.slice(0, found.index) + rest : rest.replace(/^,\s*(?=\w)/, "");
  }
  const end = prompt.search(/[\s.,;!?]*$/);
  return prompt.slice(0, end) + (end ? text : text.replace(/^, /, "")) + prompt.slice(end);
}
