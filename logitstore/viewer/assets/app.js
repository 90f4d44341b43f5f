/* Views by the address: the overview, a page of a store's sequences, one sequence. */

const REFRESH_MILLISECONDS = 2000;
const LOOKING_MILLISECONDS = 500;

const places = Object.fromEntries(["overview", "list", "sequence"].map((name) => [name, document.getElementById(name)]));
const notice = document.getElementById("notice");
const state = { overview: null, view: null, pages: 1, drawing: 0, isFitted: true, isLooking: false, isEnd: true, list: null };

function parseRoute() {
  const isBare = !location.href.includes("#");
  const fields = new URLSearchParams(isBare ? boot.start || "" : location.hash.slice(1));
  const whole = (name) => (/^\d+$/.test(fields.get(name) || "") ? Number(fields.get(name)) : null);
  return {
    store: whole("store"), page: whole("page"), sequence: whole("sequence"), token: whole("token"), record: fields.get("record"), sample: whole("sample"),
    text: fields.get("text"), where: fields.get("where"), order: fields.get("order"), descending: fields.get("descending"),
  };
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
  const isOne = route.sequence !== null || route.record !== null;
  const name = route.store === null ? "overview" : isOne ? "sequence" : "list";
  let problem = "";
  try {
    if (name === "sequence" && route.record !== null) {
      // The address of a record holds where numbers do not, as while its store is still filled.
      route.sequence = await source.record(route.store, route.record, route.sample || 0);
      if (turn !== state.drawing) return;
    }
    if (name !== "overview" && !state.overview) state.overview = await source.overview();
    if (name === "overview") await drawOverview();
    else if (name === "list") Object.assign(state, await showList(places.list, route, go));
    else await drawSequence(route, turn);
  } catch (error) {
    problem = error.message;
  }
  if (turn !== state.drawing) return;
  say(problem);
  if (name === "list" && !problem) state.list = { store: route.store, ...questionOf(route), page: route.page || 0 };
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
  const isList = route.store !== null && route.sequence === null && route.record === null;
  const isTyped = document.activeElement?.id === "jump"; // the field would be made anew
  const isAwaited = route.store === null || (isList && !isTyped && (state.isLooking || state.isEnd));
  if (source.live && !document.hidden && isAwaited) await draw();
  const slower = state.overview && !isRunning(state.overview) ? 5 : 1;
  setTimeout(refresh, isList && state.isLooking ? LOOKING_MILLISECONDS : slower * REFRESH_MILLISECONDS);
}

async function drawSequence(route, turn) {
  const payload = await source.sequence(route.store, route.sequence);
  if (turn !== state.drawing) return;
  const rows = decodeRows(payload);
  const view = { payload, rows, measure: payload.student ? "kl" : "entropy", temperature: rows.temperatures[0] };
  view.lab = payload.student ? new Lab(payload, rows, () => paintSoon(view)) : null;
  const { total, previous, next } = payload;
  const turnTo = (symbol, label, index) => pageButton(symbol, label, index !== null, () => go({ store: route.store, sequence: index }));
  const record = { store: route.store, record: payload.record_id, sample: payload.sample_index || null };
  const heading = payload.sample_index ? `${payload.record_id} · sample ${payload.sample_index}` : payload.record_id;
  const text = element("div", {
    id: "heatmap", class: "heatmap", role: "listbox", tabindex: "0", dir: "auto",
    "aria-label": "Tokens, coloured by the chosen figure; move with the arrow keys",
  });
  // What moves by itself is not read out at every step.
  const live = view.lab ? "off" : "polite";
  const detail = element("aside", { id: "detail", "aria-live": live, "aria-label": "The chosen token" });
  places.sequence.replaceChildren(...[
    element(
      "nav",
      { class: "bar", "aria-label": "Sequences" },
      element("h2", { class: "grow record" }, heading),
      element(
        "span",
        { class: "pager" },
        turnTo("‹", "Previous", previous),
        element("span", {}, `${number(route.sequence + 1)} of ${number(total)}`),
        turnTo("›", "Next", next),
      ),
      source.live || location.protocol !== "about:" ? copyButton(() => ({ ...record, token: state.view.map.selected })) : null,
    ),
    element("p", { id: "facts", class: "quiet" }),
    controls(view),
    ...(view.lab ? view.lab.controls() : []),
    legend(payload),
    payload.student_prompt ? prompts(payload) : null,
    element("div", { class: "columns" }, text, detail),
  ].filter(Boolean));
  view.detail = new Detail(detail, payload, rows, view.lab);
  view.map = new HeatMap(text, payload, rows, (position) => {
    view.detail.show(position, view.map.rowOf(position), view.temperature);
    if (view.lab) view.lab.drawCurve(view.map.rowOf(position), view.temperature);
    const place = route.record === null ? { store: route.store, sequence: route.sequence } : record;
    // A frame without an address of its own (srcdoc) may not change it.
    if (location.protocol !== "about:") history.replaceState(null, "", address({ ...place, token: position }));
  });
  state.view = view;
  paint(view);
  view.map.choose(route.token === null ? payload.label_start : route.token);
}

/** Copies the address of the sequence and token that are shown. */
function copyButton(place) {
  const button = element("button", { type: "button", id: "copy", title: "Copy the address of this token" }, "Copy link");
  button.addEventListener("click", async () => {
    const link = new URL(address(place()), location.href).href;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
    } catch {
      window.prompt("The address of this token", link); // where the browser keeps the clipboard to itself
    }
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  });
  return button;
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
  const choice = element("select", { id: "measure" }, ...Object.entries(MEASURES).filter(([name]) => name !== "kl" || view.lab).map(([name, one]) => element("option", { value: name }, one.label)));
  choice.value = view.measure;
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
  view.isMoved = true;
  paintSoon(view);
}

/** At the next frame; a moved temperature changes the figures too, a snapshot only the student's bars. */
function paintSoon(view) {
  if (view.waiting) return;
  view.waiting = true;
  requestAnimationFrame(() => {
    view.waiting = false;
    paint(view);
    const row = view.map.rowOf(view.map.selected);
    if (view.isMoved || row === null || row >= view.lab.numRows) view.detail.show(view.map.selected, row, view.temperature);
    else view.detail.move(row, view.payload.token_ids[view.map.selected] ?? null, view.temperature);
    if (view.lab) view.lab.drawCurve(row, view.temperature);
    view.isMoved = false;
  });
}

function paint(view) {
  const { rows, payload, temperature, measure } = view;
  const ofStudent = measure === "kl";
  const values = ofStudent ? view.lab.measure(temperature) : measureRows(rows, measure, temperature);
  const [low, high] = ofStudent && state.isFitted ? view.lab.range(temperature) : colourRange(values, measure, rows, state.isFitted);
  view.map.paint(values, [low, high]);
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
  const route = parseRoute();
  const { store, page } = route;
  const sequence = route.record !== null && state.view ? state.view.payload.index : route.sequence;
  if (store === null || document.getElementById("keys").open) return;
  const step = { n: 1, p: -1 }[event.key];
  if (step && sequence !== null) {
    const beside = state.view && (step > 0 ? state.view.payload.next : state.view.payload.previous);
    if (beside !== null) go({ store, sequence: beside });
  } else if (step) {
    const next = Math.min(page || 0, state.pages) + step;
    if (next >= 0 && next < state.pages) go({ store, ...questionOf(route), page: next });
  } else if (event.key === "Escape") {
    go(sequence === null ? {} : state.list || { store, page: Math.floor(sequence / PAGE_SIZE) });
  } else if (event.key === "g") {
    const jump = document.getElementById("jump");
    event.preventDefault();
    if (sequence === null && jump) jump.focus();
    else go({ store, page: Math.floor(sequence / PAGE_SIZE) });
  } else if ("+=-".includes(event.key) && sequence !== null && state.view) {
    setTemperature(state.view, state.view.temperature + (event.key === "-" ? -0.1 : 0.1));
  } else if (sequence !== null && state.view && state.view.lab) {
    const { lab } = state.view;
    if (event.key === "." || event.key === ",") lab.show(lab.step + (event.key === "." ? 1 : -1));
    else if (event.key === "l") lab.toggle();
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

// Another width breaks the text into other lines: a phone that is turned, a frame that gets its size after its content.
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  if (state.view && !places.sequence.hidden) state.view.map.reveal();
});

window.addEventListener("hashchange", draw);
draw().then(refresh);
