/* Jobs of a cluster and the stores they fill: progress, rates, failures, cost. */

const ENDED = new Set(["finished", "stopped", "failed", "interrupted"]);

/** Show the overview in place; focus and opened details survive a refresh. */
function showOverview(place, overview) {
  const opened = new Set([...place.querySelectorAll("details[open]")].map((node) => node.dataset.key));
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(
    ...(overview.jobs.length ? [jobTable(overview.jobs)] : []),
    ...overview.stores.map((store, index) => storeCard(store, index)),
  );
  for (const node of place.querySelectorAll("[data-key]")) {
    if (opened.has(node.dataset.key)) node.open = true;
    if (node.dataset.key === focused) node.focus();
  }
}

/** Whether anything may still change. */
function isRunning(overview) {
  return overview.stores.some((store) => !store.status || !ENDED.has(store.status.state));
}

function jobTable(jobs) {
  const body = element("tbody");
  for (const job of jobs) {
    body.append(
      element(
        "tr",
        {},
        element("td", { class: "record" }, job.id),
        element("td", {}, badge(job.state)),
        element("td", { class: "record" }, job.store || "–"),
        element("td", {}, job.started || "–"),
        element("td", {}, job.message || ""),
      ),
    );
  }
  const heads = ["job", "state", "store", "started", "message"].map((text) => element("th", { scope: "col" }, text));
  return element(
    "section",
    { class: "card", "aria-label": "Jobs of the cluster" },
    element("h2", {}, "Jobs"),
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body)),
  );
}

function badge(state) {
  const known = { running: "go", succeeded: "good", finished: "good", failed: "bad", stopped: "calm", draining: "calm" };
  return element("span", { class: `badge ${known[state.toLowerCase()] || "calm"}` }, state.toLowerCase());
}

function storeCard(store, index) {
  const status = store.status;
  const card = element("section", { class: "card", "aria-label": `Store ${store.uri}`, "data-store": String(index) });
  card.append(
    element(
      "h2",
      { class: "row" },
      element("span", { class: "record grow" }, store.uri),
      badge(status ? status.state : store.problem ? "not ready" : "no running job"),
    ),
  );
  if (store.problem) card.append(element("p", { class: "problem" }, store.problem));
  if (status && status.units_total) {
    const label = `${number(status.units_done)} of ${number(status.units_total)} units`;
    const bar = element("progress", { max: String(status.units_total), value: String(status.units_done), "aria-label": label });
    card.append(element("div", { class: "row" }, bar, element("span", {}, label)));
  }
  if (status && status.message) card.append(element("p", {}, status.message));
  if (store.totals) card.append(figures(store), teacherLine(store.manifest));
  if (store.tokenizer_note) card.append(element("p", { class: "quiet" }, store.tokenizer_note));
  if (status && status.causes.length) card.append(causeList(status.causes, index));
  if (status && status.workers.length) card.append(workerTable(status.workers, index));
  if (store.totals && store.totals.num_rejects) card.append(rejectList(store.totals.num_rejects, index));
  if (store.totals && store.totals.num_sequences) {
    card.append(element("p", {}, element("a", { class: "button", href: `#store=${index}&page=0`, "data-key": `open${index}` }, "Open the sequences")));
  }
  return card;
}

function money(value, currency) {
  return value === null ? "–" : `${number(value, 2)} ${currency}`;
}

function figures(store) {
  const { totals, status } = store;
  const pairs = [
    ["sequences", number(totals.num_sequences)],
    ["label rows", number(totals.num_rows)],
    ["tokens", number(totals.num_tokens)],
    ["size", bytes(totals.num_bytes)],
    ["bytes per label row", totals.num_rows ? number(totals.num_bytes / totals.num_rows, 1) : "–"],
    ["shards", number(totals.num_shards)],
    ["rejected records", number(status && status.rejects !== null ? status.rejects : totals.num_rejects)],
  ];
  if (status) {
    const told = (label, value, show) => value !== null && pairs.push([label, show(value)]);
    told("tokens per second", status.tokens_per_second, number);
    told("time left", status.seconds_left, duration);
    told("failures", status.failures, number);
    if (status.cost) {
      pairs.push(["cost so far", money(status.cost.so_far, status.cost.currency)]);
      pairs.push(["cost in all", money(status.cost.estimate, status.cost.currency)]);
    }
  }
  const list = element("dl", { class: "figures" });
  for (const [term, value] of pairs) list.append(element("div", {}, element("dt", {}, term), element("dd", {}, value)));
  return list;
}

function teacherLine(manifest) {
  const parts = [
    manifest.teacher,
    manifest.dtype,
    manifest.quantization,
    manifest.engine,
    `${manifest.mode}, ${manifest.positions} positions`,
    `top ${manifest.top_k} of ${number(manifest.vocab_size)}`,
    `temperatures ${manifest.temperatures.join(", ")}`,
  ];
  return element("p", { class: "quiet" }, parts.filter(Boolean).join(" · "));
}

function workerTable(workers, index) {
  const body = element("tbody");
  for (const worker of workers) {
    const values = [worker.name, worker.node, worker.state, worker.unit, worker.restarts ? `restarts: ${worker.restarts}` : ""];
    body.append(element("tr", {}, ...values.map((value) => element("td", { class: "record" }, value))));
  }
  return element(
    "details",
    { "data-key": `workers${index}` },
    element("summary", {}, `Workers: ${workers.length}`),
    element("div", { class: "scroll" }, element("table", {}, body)),
  );
}

function causeList(causes, index) {
  return element(
    "details",
    { "data-key": `causes${index}` },
    element("summary", {}, "Latest failures"),
    element("ul", {}, ...causes.map((cause) => element("li", { class: "record" }, cause))),
  );
}

function rejectList(total, index) {
  const list = element("div", { class: "scroll" });
  const details = element("details", { "data-key": `rejects${index}` }, element("summary", {}, `${number(total)} rejected records`), list);
  details.addEventListener("toggle", async () => {
    if (!details.open || list.childElementCount) return;
    const answer = await source.rejects(index, 0, 100);
    const kinds = Object.entries(answer.kinds).map(([kind, count]) => `${kind}: ${number(count)}`);
    const body = element("tbody");
    for (const one of answer.rejects) {
      body.append(
        element("tr", {}, element("td", { class: "record" }, `${one.file}:${one.line}`), element("td", {}, one.kind), element("td", {}, one.reason)),
      );
    }
    list.replaceChildren(element("p", { class: "quiet" }, kinds.join(", ")), element("table", {}, body));
  });
  return details;
}
