/* Views by the address: the overview, a page of a store's sequences, one sequence. */

const REFRESH_MILLISECONDS = 2000;

const places = Object.fromEntries(["overview", "list", "sequence"].map((name) => [name, document.getElementById(name)]));
const notice = document.getElementById("notice");
const state = { overview: null, view: null, pages: 1, drawing: 0, isFitted: true };

function parseRoute() {
  const isBare = !location.href.includes("#");
  const fields = new URLSearchParams(isBare ? boot.start || "" : location.hash.slice(1));
  const whole = (name) => (/^\d+$/.test(fields.get(name) || "") ? Number(fields.get(name)) : null);
  return { store: whole("store"), page: whole("page"), sequence: whole("sequence"), token: whole("token") };
}

function address(route) {
  const fields = Object.entries(route).filter(([, value]) => value !== null && value !== undefined);
  return `#${new URLSearchParams(fields)}`;
}

function go(route) {
  location.hash = address(route);
}

function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

async function draw() {
  const turn = ++state.drawing;
  const route = parseRoute();
  const name = route.store === null ? "overview" : route.sequence === null ? "list" : "sequence";
  let problem = "";
  try {
    if (name !== "overview" && !state.overview) state.overview = await source.overview();
    if (name === "overview") await drawOverview();
    else if (name === "list") state.pages = (await showList(places.list, route.store, route.page || 0, go)).pages;
    else await drawSequence(route, turn);
  } catch (error) {
    problem = error.message;
  }
  if (turn !== state.drawing) return;
  say(problem);
  // What could not be drawn must not leave another place's content under its address.
  const isShown = !problem || name === "overview";
  for (const [other, place] of Object.entries(places)) place.hidden = other !== name || !isShown;
  const store = state.overview && state.overview.stores[route.store];
  document.getElementById("subtitle").replaceChildren(...(store ? crumbs(route, store) : []));
  if (name === "sequence" && isShown) {
    state.view.map.place.focus({ preventScroll: true });
    state.view.map.reveal(); // only now that it has a place on the page
  }
}

function crumbs(route, store) {
  const home = element("a", { href: "#" }, "Overview");
  const list = element("a", { href: address({ store: route.store, page: 0 }), class: "record" }, ...breakable(store.uri));
  return [home, " › ", list];
}

async function drawOverview() {
  const overview = await source.overview();
  const text = JSON.stringify(overview);
  if (text === state.overviewText && places.overview.childElementCount) return;
  state.overview = overview;
  state.overviewText = text;
  showOverview(places.overview, overview);
}

async function refresh() {
  const route = parseRoute();
  const isAwaited = route.store === null || (route.sequence === null && !places.list.querySelector("table"));
  if (source.live && !document.hidden && isAwaited) await draw();
  const slower = state.overview && !isRunning(state.overview) ? 5 : 1;
  setTimeout(refresh, slower * REFRESH_MILLISECONDS);
}

async function drawSequence(route, turn) {
  const payload = await source.sequence(route.store, route.sequence);
  if (turn !== state.drawing) return;
  const rows = decodeRows(payload);
  const view = { payload, rows, measure: "entropy", temperature: rows.temperatures[0] };
  const { total } = payload;
  const turnTo = (symbol, label, index) => pageButton(symbol, label, index >= 0 && index < total, () => go({ store: route.store, sequence: index }));
  const heading = payload.sample_index ? `${payload.record_id} · sample ${payload.sample_index}` : payload.record_id;
  const text = element("div", {
    id: "heatmap", class: "heatmap", role: "listbox", tabindex: "0", dir: "auto",
    "aria-label": "Tokens, coloured by the chosen figure; move with the arrow keys",
  });
  const detail = element("aside", { id: "detail", "aria-live": "polite", "aria-label": "The chosen token" });
  places.sequence.replaceChildren(...[
    element(
      "nav",
      { class: "bar", "aria-label": "Sequences" },
      element("h2", { class: "grow record" }, heading),
      element(
        "span",
        { class: "pager" },
        turnTo("‹", "Previous", route.sequence - 1),
        element("span", { title: "sequences are numbered from 0" }, `${number(route.sequence)} / ${number(total - 1)}`),
        turnTo("›", "Next", route.sequence + 1),
      ),
    ),
    element("p", { id: "facts", class: "quiet" }),
    controls(view),
    legend(payload),
    payload.student_prompt ? prompts(payload) : null,
    element("div", { class: "columns" }, text, detail),
  ].filter(Boolean));
  view.detail = new Detail(detail, payload, rows);
  view.map = new HeatMap(text, payload, rows, (position) => {
    view.detail.show(position, view.map.rowOf(position), view.temperature);
    const place = { store: route.store, sequence: route.sequence, token: position };
    // A frame without an address of its own (srcdoc) may not change it.
    if (location.protocol !== "about:") history.replaceState(null, "", address(place));
  });
  state.view = view;
  paint(view);
  view.map.choose(route.token === null ? payload.label_start : route.token);
}

/** What the teacher and what its student see before the same response, side by side. */
function prompts(payload) {
  const teacher = payload.texts.slice(0, payload.prompt_length);
  const one = (name, texts) => element(
    "figure",
    {},
    element("figcaption", {}, `${name}, ${number(texts.length)} tokens`),
    element("pre", { dir: "auto" }, texts.join("")),
  );
  return element(
    "details",
    { id: "prompts", open: "" },
    element("summary", {}, "The student sees another prompt than the teacher"),
    element("div", { class: "prompts" }, one("Teacher", teacher), one("Student", payload.student_prompt)),
  );
}

/** Lowest and highest temperature that the rows can be shown at: above the highest stored one the tail still
 * lies between two knots, but a single stored one is too few to interpolate. */
function temperatureRange({ temperatures }) {
  const [low, high] = [temperatures[0], temperatures[temperatures.length - 1]];
  return [low, temperatures.length === 1 ? low : Math.max(high, 10)];
}

function controls(view) {
  const { temperatures } = view.rows;
  const [low, high] = temperatureRange(view.rows);
  const slider = element("input", {
    type: "range", id: "temperature", min: String(low), max: String(high), step: "0.05", value: String(low), list: "stored",
  });
  slider.disabled = low === high;
  slider.addEventListener("input", () => setTemperature(view, Number(slider.value)));
  const marks = element("datalist", { id: "stored" }, ...temperatures.map((value) => element("option", { value: String(value) })));
  const choice = element("select", { id: "measure" }, ...Object.entries(MEASURES).map(([name, one]) => element("option", { value: name }, one.label)));
  choice.addEventListener("change", () => {
    view.measure = choice.value;
    paint(view);
  });
  const fit = element("input", { type: "checkbox", id: "fit" });
  fit.checked = state.isFitted;
  fit.addEventListener("change", () => {
    state.isFitted = fit.checked;
    paint(view);
  });
  return element(
    "div",
    { class: "controls" },
    element("label", { for: "temperature" }, "Temperature"),
    slider,
    marks,
    element("output", { id: "temperature-value", for: "temperature" }),
    element("span", { class: "pair" }, element("label", { for: "measure" }, "Colour"), choice),
    element("span", { class: "pair" }, fit, element("label", { for: "fit" }, "fit to sequence")),
  );
}

function legend(payload) {
  const steps = [];
  for (let level = 0; level <= LEVELS; level += 2) steps.push(element("span", { class: `t h${level}`, "aria-hidden": "true" }, "\u2007"));
  const mark = element("span", { class: "mark", "aria-hidden": "true" });
  const names = [...new Set((payload.segments || []).map(([name]) => name))].filter((name) => name !== "context");
  const segments = names.map((name) => element("span", { class: "t", "data-segment": name }, name));
  return element(
    "p",
    { class: "legend" },
    element("span", { id: "low" }),
    element("span", { class: "scale" }, ...steps),
    element("span", { id: "high" }),
    payload.prompt_length ? element("span", { class: "pair" }, mark, "the response begins") : null,
    segments.length ? element("span", { class: "pair", id: "segments" }, ...segments) : null,
  );
}

/** Take a temperature, the stored one where the slider stands within half a step of it. */
function setTemperature(view, temperature) {
  const { temperatures } = view.rows;
  const [low, high] = temperatureRange(view.rows);
  const near = temperatures.find((stored) => Math.abs(stored - temperature) < 0.0251);
  view.temperature = near === undefined ? Math.min(Math.max(temperature, low), high) : near;
  document.getElementById("temperature").value = String(view.temperature);
  if (view.waiting) return;
  view.waiting = true;
  requestAnimationFrame(() => {
    view.waiting = false;
    paint(view);
    view.detail.show(view.map.selected, view.map.rowOf(view.map.selected), view.temperature);
  });
}

function paint(view) {
  const { rows, payload, temperature, measure } = view;
  const { values, low, high } = view.map.paint(measure, temperature, state.isFitted);
  const kind = rows.temperatures.includes(temperature) ? "stored" : "interpolated";
  const only = rows.temperatures.length === 1 ? "the only one stored" : kind;
  document.getElementById("temperature-value").textContent = `${number(temperature, 2)} (${only})`;
  const { label, unit } = MEASURES[measure];
  document.getElementById("low").textContent = `${label}: ${number(low, 2)}`;
  document.getElementById("high").textContent = `${number(high, 2)} ${unit}`;
  const surprise = mean(rows.labelLogprob.map((value) => -value));
  const facts = [
    `${number(payload.texts.length)} tokens`,
    payload.prompt_length ? `${number(payload.prompt_length)} of the prompt` : "",
    `${number(rows.numRows)} label rows of up to ${number(rows.topK)} entries`,
    payload.finish_reason,
    ...payload.flags,
    `mean ${label}: ${number(mean(values), 3)} ${unit}`,
    measure === "surprise" || Number.isNaN(surprise) ? "" : `mean surprise: ${number(surprise, 3)} nats`,
  ];
  document.getElementById("facts").textContent = facts.filter(Boolean).join(" · ");
}

/** Of the values that are known. */
function mean(values) {
  const known = values.filter((value) => !Number.isNaN(value));
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
}

/* Keys that work anywhere in a view; those of the heat map are its own. */
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const { store, page, sequence } = parseRoute();
  if (store === null || document.getElementById("keys").open) return;
  const step = { n: 1, p: -1 }[event.key];
  if (step && sequence !== null) {
    const total = state.view ? state.view.payload.total : 0;
    if (sequence + step >= 0 && sequence + step < total) go({ store, sequence: sequence + step });
  } else if (step) {
    const next = (page || 0) + step;
    if (next >= 0 && next < state.pages) go({ store, page: next });
  } else if (event.key === "Escape") {
    go(sequence === null ? {} : { store, page: Math.floor(sequence / PAGE_SIZE) });
  } else if (event.key === "g") {
    const jump = document.getElementById("jump");
    event.preventDefault();
    if (sequence === null && jump) jump.focus();
    else go({ store, page: Math.floor(sequence / PAGE_SIZE) });
  } else if ("+=-".includes(event.key) && sequence !== null && state.view) {
    setTemperature(state.view, state.view.temperature + (event.key === "-" ? -0.1 : 0.1));
  }
});

const themes = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");
themeButton.addEventListener("click", () => {
  const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length];
  document.documentElement.dataset.theme = next;
  themeButton.textContent = `Theme: ${next}`;
});
const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());
keys.querySelector("button").addEventListener("click", () => keys.close());

window.addEventListener("hashchange", draw);
draw().then(refresh);
