/* The lab: a student's distribution beside its teacher's, over the snapshots of its training.
 *
 * The target that the loss names is alpha * teacher + (1 - alpha) * the actual token: `loss.alpha` is the
 * weight of distillation. The loss compares the first part at its temperature, the second at T = 1.
 */

const PLAY_MILLISECONDS = 700;
const LAB_ENTRIES = 12;

/** The student's rows of every snapshot, in the form of `decodeRows`; null without a student. */
function decodeStudent(payload, rows) {
  const { student } = payload;
  if (!student) return null;
  const snapshots = student.snapshots.map((one) => ({
    ...rows,
    numRows: student.num_rows,
    vocabSize: student.vocab_size,
    logits: decodeArray(one.logits_NK, Float32Array),
    logsumexp: decodeArray(one.logsumexp_NM, Float32Array),
    logTailMass: decodeArray(one.log_tail_mass_NM, Float32Array),
    labelLogprob: decodeArray(one.label_logprob_N, Float32Array),
    labelRank: decodeArray(one.label_rank_N, Int32Array),
    ownIds: decodeArray(one.own_token_ids_N, Int32Array),
    ownLogits: decodeArray(one.own_logits_N, Float32Array),
  }));
  return { steps: student.steps, numRows: student.num_rows, snapshots };
}

/** KL(teacher || student) in nats of two rows at the same entries, with one bucket for all other ids. */
function rowKl(teacher, student) {
  let sum = 0;
  let tailP = Math.exp(teacher.logTail);
  for (let k = 0; k < teacher.logprobs.length; k++) {
    const p = Math.exp(teacher.logprobs[k]);
    if (Number.isFinite(student.logprobs[k])) sum += p * (teacher.logprobs[k] - student.logprobs[k]);
    else tailP += p; // the student has no such id
  }
  return tailP > 0 ? sum + tailP * (Math.log(tailP) - student.logTail) : sum;
}

/** The actual token's log-probability at a temperature, stored or not; NaN where it is not known. */
function labelAt(rows, i, at, temperature) {
  const logit = rows.labelLogprob[i] + rows.logsumexp[i * rows.temperatures.length];
  return rows.temperatures[0] === 1 ? logit / temperature - at.normaliser : NaN;
}

class Lab {
  constructor(payload, rows, changed) {
    Object.assign(this, decodeStudent(payload, rows), { payload, rows, changed });
    this.step = this.steps.length - 1;
    this.alpha = 1;
    this.timer = null;
    this.byTemperature = new Map();
  }

  /** KL of every followed row in every snapshot, and the means over the rows that the loss counts. */
  kl(temperature) {
    if (!this.byTemperature.has(temperature)) {
      const teacher = Array.from({ length: this.numRows }, (_, i) => rowAt(this.rows, i, temperature));
      const rows = this.snapshots.map((one) => teacher.map((at, i) => rowKl(at, rowAt(one, i, temperature))));
      const means = rows.map((values) => mean(values.filter((_, i) => this.rows.lossMask[i])));
      this.byTemperature.clear(); // the last one only: a slider passes many
      this.byTemperature.set(temperature, { rows, means });
    }
    return this.byTemperature.get(temperature);
  }

  /** Values of the heat map; NaN beyond the rows that were followed. */
  measure(temperature) {
    const values = new Float64Array(this.rows.numRows).fill(NaN);
    values.set(this.kl(temperature).rows[this.step]);
    return values;
  }

  /** The same range in all snapshots, so that colours fade as the student learns. */
  range(temperature) {
    const first = this.kl(temperature).rows[0].filter((_, i) => this.rows.lossMask[i]).sort((a, b) => a - b);
    return [0, first[Math.round(0.98 * (first.length - 1))] || 1];
  }

  controls() {
    const play = element("button", { type: "button", id: "play", on: { click: () => this.toggle() } }, "▶ Play");
    const range = (id, max, step, value, use) => {
      const slider = element("input", { type: "range", id, min: "0", max: String(max), step: String(step), value: String(value) });
      slider.addEventListener("input", () => use(Number(slider.value)));
      return slider;
    };
    const steps = range("step", this.steps.length - 1, 1, this.step, (value) => this.show(value));
    const alpha = range("alpha", 1, 0.05, this.alpha, (value) => {
      this.alpha = value;
      this.say();
      this.changed();
    });
    this.place = element(
      "div",
      { class: "controls lab", role: "group", "aria-label": "The student" },
      play,
      element("label", { for: "step" }, "Snapshot"),
      steps,
      element("output", { id: "step-value", for: "step" }),
      element("span", { class: "pair", title: "target = alpha × teacher + (1 − alpha) × the actual token" }, element("label", { for: "alpha" }, "alpha"), alpha),
      element("output", { id: "alpha-value", for: "alpha" }),
    );
    this.curve = element("div", { id: "curve" });
    this.say();
    return [this.place, this.curve];
  }

  toggle() {
    if (this.timer !== null) {
      this.stop();
      return;
    }
    if (this.step === this.steps.length - 1) this.show(0);
    this.timer = setInterval(() => {
      // Another sequence or view may stand here by now.
      if (!this.place.isConnected) this.stop();
      else if (this.step < this.steps.length - 1) this.show(this.step + 1);
      if (this.step === this.steps.length - 1) this.stop();
    }, PLAY_MILLISECONDS);
    this.say();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.say();
  }

  show(step) {
    this.step = Math.min(Math.max(step, 0), this.steps.length - 1);
    this.say();
    this.changed();
  }

  say() {
    const at = (id) => this.place.querySelector(`#${id}`);
    at("play").textContent = this.timer === null ? "▶ Play" : "❚❚ Pause";
    at("step").value = String(this.step);
    const step = this.steps[this.step];
    at("step").setAttribute("aria-valuetext", `step ${step}`);
    at("step-value").textContent = step ? `step ${number(step)} of ${number(this.steps[this.steps.length - 1])}` : "before training";
    const words = this.alpha === 1 ? " (the teacher alone)" : this.alpha === 0 ? " (the actual token alone)" : "";
    at("alpha-value").textContent = `${number(this.alpha, 2)}${words}`;
  }

  /** KL over the snapshots, of the sequence and of the chosen row, as one small picture. */
  drawCurve(row, temperature) {
    const { rows, means } = this.kl(temperature);
    const own = row === null || row >= this.numRows ? null : rows.map((values) => values[row]);
    const [width, height] = [220, 44];
    const most = Math.max(...means, ...(own || []), 1e-9);
    const last = this.steps[this.steps.length - 1] || 1;
    const point = (value, i) => [4 + (this.steps[i] / last) * (width - 8), height - 3 - (value / most) * (height - 6)];
    const line = (values, name) => vector("polyline", { class: name, points: values.map((value, i) => point(value, i).join(",")).join(" ") });
    const dot = (values, name) => {
      const [x, y] = point(values[this.step], this.step);
      return vector("circle", { class: name, cx: x, cy: y, r: 3.5 });
    };
    const words = (name, values) => `KL of ${name}: ${number(values[0], 2)} before, ${number(values[this.step], 3)} now`;
    const picture = vector("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words("the sequence", means) });
    picture.append(line(means, "all"), ...(own ? [line(own, "one"), dot(own, "one")] : []), dot(means, "all"));
    this.curve.replaceChildren(
      picture,
      element("span", { class: "key" }, element("span", { class: "all", "aria-hidden": "true" }, "●"), ` ${words("the sequence", means)}`),
      own ? element("span", { class: "key" }, element("span", { class: "one", "aria-hidden": "true" }, "●"), ` ${words("this token", own)}`) : null,
    );
    if (!own) this.curve.lastChild.remove();
  }

  /** Lines of the chosen row: what each is, and its log-probability of the teacher, target and student. */
  lines(row, temperature, actual, showAll) {
    const student = this.snapshots[this.step];
    const teacherAt = rowAt(this.rows, row, temperature);
    const studentAt = rowAt(student, row, temperature);
    const start = row * this.rows.topK;
    const stored = Array.from(this.rows.tokenIds.subarray(start, start + teacherAt.logprobs.length));
    const count = showAll ? stored.length : Math.min(LAB_ENTRIES, stored.length);
    const target = (p, isActual) => this.alpha * p + (isActual ? 1 - this.alpha : 0);
    const line = (kind, text, id, p, q) => ({ kind, text, id, p, q, target: target(p, id !== null && id === actual) });
    const lines = [];
    for (let k = 0; k < stored.length; k++) {
      if (k >= count && stored[k] !== actual) continue;
      lines.push(line("", null, stored[k], Math.exp(teacherAt.logprobs[k]), Math.exp(studentAt.logprobs[k])));
    }
    const shownP = lines.reduce((sum, one) => sum + one.p, 0);
    const shownQ = lines.reduce((sum, one) => sum + one.q, 0);
    const own = student.ownIds[row];
    if (actual !== null && !stored.includes(actual) && !Number.isNaN(this.rows.labelLogprob[row])) {
      const p = Math.exp(labelAt(this.rows, row, teacherAt, temperature));
      lines.push(line("outside", null, actual, p, Math.exp(labelAt(student, row, studentAt, temperature))));
    }
    if (!lines.some((one) => one.id === own)) {
      const known = stored.indexOf(own);
      const p = known < 0 ? NaN : Math.exp(teacherAt.logprobs[known]);
      lines.push(line("own", null, own, p, Math.exp(student.ownLogits[row] / temperature - studentAt.normaliser)));
    }
    const rest = stored.length - lines.filter((one) => stored.includes(one.id) && one.kind === "").length;
    const words = rest ? `all other ids, ${rest} of them stored` : "tail: all other ids";
    lines.push(line("tail", words, null, Math.max(1 - shownP, 0), Math.max(1 - shownQ, 0)));
    return lines;
  }
}

/** The table of one row; `update` moves its bars, so that they glide from snapshot to snapshot. */
class Bars {
  constructor(payload) {
    this.payload = payload;
    this.body = element("tbody");
    const heads = [["token", ""], ["teacher", "right teacher"], ["target", "right target"], ["student", "right student"]];
    this.table = element("table", { class: "alternatives both" }, tableHead(heads), this.body);
    this.made = [];
  }

  update(lines, actual, hasTarget) {
    this.table.classList.toggle("targeted", hasTarget);
    while (this.made.length > lines.length) this.made.pop().row.remove();
    lines.forEach((one, place) => {
      if (place === this.made.length) this.made.push(this.line());
      const { row, text, note, teacher, student, mark, cells } = this.made[place];
      row.className = [one.kind, one.id !== null && one.id === actual ? "actual" : ""].join(" ").trim();
      text.textContent = one.id === null ? one.text : pieceText(this.payload.pieces[one.id]);
      text.className = one.id === null ? "" : "piece";
      note.textContent = { own: " the student's first choice", outside: " the actual token, in the tail" }[one.kind] || "";
      teacher.style.width = `${100 * (one.p || 0)}%`;
      student.style.width = `${100 * one.q}%`;
      mark.style.left = `${100 * (one.target || 0)}%`;
      [one.p, one.target, one.q].forEach((value, i) => {
        cells[i].textContent = Number.isNaN(value) ? "in the tail" : probability(Math.log(value));
      });
    });
  }

  line() {
    const text = element("bdi", { class: "piece" });
    const note = element("span", { class: "quiet" });
    const [teacher, student] = ["fill teacher", "fill student"].map((name) => element("span", { class: name }));
    const mark = element("span", { class: "mark-target", "aria-hidden": "true" });
    const tracks = element("span", { class: "tracks", "aria-hidden": "true" }, element("span", { class: "track" }, teacher), element("span", { class: "track" }, student), mark);
    const cells = ["right teacher", "right target", "right student"].map((name) => element("td", { class: name }));
    const row = element("tr", {}, element("td", {}, text, note, tracks), ...cells);
    this.body.append(row);
    return { row, text, note, teacher, student, mark, cells };
  }
}

/** An element of a picture, in the namespace of the page's own. */
function vector(tag, properties) {
  const node = document.createElementNS(document.getElementById("picture").namespaceURI, tag);
  for (const [name, value] of Object.entries(properties)) node.setAttribute(name, value);
  return node;
}
