/* Jobs of a cluster and the stores they fill: progress, rates, failures, cost. */

const ENDED = new Set(["finished", "stopped", "failed", "interrupted"]);

/** Show the overview in place; focus and opened details survive a refresh. */
function showOverview(place, overview) {
  const opened = new Set([...place.querySelectorAll("details[open]")].map((node) => node.dataset.key));
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  place.replaceChildren(
    ...(overview.jobs.length ? [jobList(overview.jobs, overview.stores)] : []),
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

function jobList(jobs, stores) {
  const list = element("ul", { class: "jobs" });
  for (const job of jobs) {
    const index = stores.findIndex((store) => store.uri === job.store);
    const isOpen = index >= 0 && stores[index].totals && stores[index].totals.num_sequences;
    const store = isOpen ? element("a", { href: `#store=${index}&page=0` }, job.store) : job.store || "–";
    const isWorthSaying = !["RUNNING", "SUCCEEDED"].includes(job.state);
    list.append(
      element(
        "li",
        {},
        element("span", { class: "row" }, element("strong", { class: "record grow" }, job.id), badge(job.state)),
        element("span", { class: "quiet" }, store, job.started ? ` · started ${when(job.started)}` : ""),
        isWorthSaying && job.message ? element("span", { class: "record" }, job.message) : null,
      ),
    );
  }
  return element("section", { class: "card", "aria-label": "Jobs of the cluster" }, element("h2", {}, "Jobs"), list);
}

function badge(state) {
  const known = {
    running: "go", succeeded: "good", finished: "good", failed: "bad", silent: "bad", interrupted: "bad", unreadable: "bad",
  };
  return element("span", { class: `badge ${known[state.toLowerCase()] || "calm"}` }, state.toLowerCase());
}

function storeCard(store, index) {
  const { status, totals } = store;
  const card = element("section", { class: "card", "aria-label": `Store ${store.uri}`, "data-store": String(index) });
  const state = status ? status.state : store.problem ? "not ready" : "no job";
  card.append(element("h2", { class: "row" }, element("span", { class: "record grow" }, ...breakable(store.uri)), badge(state)));
  if (store.problem) card.append(element("p", { class: "problem" }, store.problem));
  if (status && status.units_total) {
    const label = `${number(status.units_done)} of ${number(status.units_total)} units`;
    const bar = element("progress", { max: String(status.units_total), value: String(status.units_done), "aria-label": label });
    card.append(element("div", { class: "row" }, bar, element("span", {}, label)));
  }
  if (status && status.message) card.append(element("p", {}, status.message));
  if (status) card.append(figures(jobFigures(status), "job"));
  if (totals) {
    const rejects = status && status.rejects !== null ? status.rejects : totals.num_rejects;
    card.append(figures(storeFigures(totals, rejects, status && status.cost), ""), teacherLine(store.manifest));
  }
  if (store.tokenizer_note) card.append(element("p", { class: "quiet" }, store.tokenizer_note));
  if (status && status.causes.length) card.append(causeList(status.causes, index));
  if (status && status.workers.length) card.append(workerTable(status.workers, index));
  if (totals && totals.num_rejects) card.append(rejectList(totals.num_rejects, index));
  if (store.student) card.append(studentLine(store.student, index));
  if (totals && totals.num_sequences) {
    const open = { class: "button", href: `#store=${index}&page=0`, "data-key": `open${index}` };
    card.append(element("p", {}, element("a", open, "Open the sequences")));
  }
  return card;
}

/** The sequences on which a student was followed. */
function studentLine(student, index) {
  const links = student.sequences.map((one) => {
    const name = one.sample_index ? `${one.record_id} · sample ${one.sample_index}` : one.record_id;
    return element("li", {}, element("a", { class: "record", href: `#store=${index}&sequence=${one.index}` }, name));
  });
  const last = student.steps[student.steps.length - 1];
  const words = `${number(student.steps.length)} snapshots, up to step ${number(last)}`;
  return element(
    "div",
    { class: "student" },
    element("h3", {}, "Watch the student learn"),
    element("p", { class: "quiet" }, ...breakable(student.folder), `: ${words}.`, links.length ? "" : " It was followed on no sequence of this store."),
    element("ul", {}, ...links),
  );
}

/** What the job's driver last told, without what it does not know. */
function jobFigures(status) {
  const { cost } = status;
  const ready = status.workers.filter((worker) => worker.state === "ready").length;
  const isRunning = !ENDED.has(status.state);
  const pairs = [
    ["tokens per second", isRunning ? status.tokens_per_second : null, number],
    ["time left", isRunning ? status.seconds_left : null, duration],
    ["workers ready", status.workers.length ? ready : null, (value) => `${value} of ${status.workers.length}`],
    ["failures", status.failures, number],
  ];
  if (cost) {
    pairs.push([`${cost.device === "gpu" ? "GPU" : "core"} time`, cost.device_sec, duration]);
    const money = (value) => `${number(value, 2)} ${cost.currency}`;
    if (cost.compute) {
      pairs.push(["cost so far", cost.compute, money]);
      const share = status.units_total ? status.units_done / status.units_total : 0;
      if (isRunning && share) pairs.push(["cost in all, about", cost.compute / share, money]);
    }
  }
  return pairs.filter(([, value]) => value !== null).map(([label, value, show]) => [label, show(value), label === "failures" && value > 0]);
}

function storeFigures(totals, rejects, cost) {
  const pairs = [
    ["sequences", number(totals.num_sequences)],
    ["label rows", number(totals.num_rows)],
    ["tokens", number(totals.num_tokens)],
    ["size", bytes(totals.num_bytes)],
    ["bytes per label row", totals.num_rows ? number(totals.num_bytes / totals.num_rows, 1) : "–"],
    ["rejected records", number(rejects), rejects > 0],
  ];
  if (cost && cost.storage_per_month) pairs.push(["storage, a month", `${number(cost.storage_per_month, 2)} ${cost.currency}`]);
  return pairs;
}

/** Pairs of label and value; a third true marks trouble. */
function figures(pairs, kind) {
  const list = element("dl", { class: `figures ${kind}` });
  for (const [term, value, isTrouble] of pairs) {
    list.append(element("div", {}, element("dt", {}, term), element("dd", { class: isTrouble ? "problem" : null }, value)));
  }
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
    const isCut = answer.rejects.length < answer.total;
    const words = kinds.join(", ") + (isCut ? `; the first ${number(answer.rejects.length)} are shown` : "");
    list.replaceChildren(element("p", { class: "quiet" }, words), element("table", {}, body));
  });
  return details;
}
