/* Where values come from: the page's own server, or the page itself when it is one file. */

const boot = JSON.parse(document.getElementById("data").textContent);

async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: "application/json" } });
  } catch {
    throw new Error("The viewer's server does not answer; start it again and reload this page.");
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

const liveSource = {
  live: true,
  overview: () => ask("/api/overview"),
  sequences: (store, start, count, question) => ask(`/api/stores/${store}/sequences?${new URLSearchParams({ start, count, ...question })}`),
  sequence: async (store, index) => {
    const found = await ask(`/api/stores/${store}/sequences/${index}`);
    return { ...found, previous: index > 0 ? index - 1 : null, next: index + 1 < found.total ? index + 1 : null };
  },
  record: async (store, id, sample) => (await ask(`/api/stores/${store}/record?${new URLSearchParams({ id, sample })}`)).index,
  rejects: (store, start, count) => ask(`/api/stores/${store}/rejects?start=${start}&count=${count}`),
};

const embeddedSource = {
  live: false,
  overview: async () => boot.overview,
  sequences: async (store, start, count, question) => {
    const asked = [question.where ? "conditions" : "", ["entropy", "surprise"].includes(question.order) ? `an order by ${question.order}` : ""];
    const missing = asked.filter(Boolean).join(" and ");
    if (missing) throw new Error(`This file does not know ${missing}; penumbra store view STORE does.`);
    const needle = (question.text || "").toLowerCase();
    const held = boot.summaries[store];
    const all = held.filter((one, place) => one.record_id.toLowerCase().includes(needle) || wholeText(store, place).includes(needle));
    const facts = { looked: held.length, of: held.length, store: storeTotal(store) };
    if (question.order === "length") all.sort((a, b) => (question.descending ? -1 : 1) * (a.num_tokens - b.num_tokens));
    else if (question.descending) all.reverse();
    return { start, total: all.length, ...facts, sequences: all.slice(start, start + count) };
  },
  sequence: async (store, index) => {
    const all = boot.sequences[store];
    const place = all.findIndex((one) => one.index === index);
    if (place < 0) throw new Error(`Sequence ${index} is not in this file, which holds ${all.length} of ${storeTotal(store)}.`);
    const beside = (other) => (all[other] ? all[other].index : null);
    return { ...all[place], total: storeTotal(store), previous: beside(place - 1), next: beside(place + 1) };
  },
  record: async (store, id, sample) => {
    const found = boot.summaries[store].find((one) => one.record_id === id && one.sample_index === sample);
    if (!found) throw new Error(`Record ${id} is not in this file, which holds ${boot.summaries[store].length} of ${storeTotal(store)} sequences.`);
    return found.index;
  },
  rejects: async (store, start, count) => {
    const all = boot.rejects[store];
    return { ...all, rejects: all.rejects.slice(start, start + count) };
  },
};

/** All of a held sequence in small letters; its line in the list has the beginnings alone. */
function wholeText(store, place) {
  const one = boot.sequences[store][place];
  one.whole ??= one.texts.join("").toLowerCase();
  return one.whole;
}

function storeTotal(store) {
  return boot.overview.stores[store].totals.num_sequences;
}

const source = boot.mode === "live" ? liveSource : embeddedSource;

/**
 * An element with text and children; the only way this page makes elements. Text goes in as text nodes,
 * never as markup.
 */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A path or URL that may break after a slash, as children of an element. */
function breakable(uri) {
  return uri.split(/(?<=\/)(?=[^/])/).flatMap((part) => [part, element("wbr")]);
}

function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

/** A moment given in ISO 8601, without the year. */
function when(iso) {
  const moment = new Date(iso);
  if (Number.isNaN(moment.getTime())) return iso;
  const form = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false, timeZone: "UTC" };
  return `${moment.toLocaleString("en-GB", form)} UTC`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${number(seconds / 3600, 1)} h`;
  return `${number(seconds / 86400, 1)} d`;
}
