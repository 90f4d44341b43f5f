/* One token: what the teacher gave for its place. */

const SHOWN_ENTRIES = 20;

class Detail {
  /** With a `lab`, the student's bars stand below the teacher's. */
  constructor(place, payload, rows, lab) {
    this.place = place;
    this.lab = lab;
    this.bars = new Bars(payload);
    this.payload = payload;
    this.rows = rows;
    this.all = false;
  }

  show(position, row, temperature) {
    const { texts, token_ids: tokenIds } = this.payload;
    const isToken = position < texts.length;
    const id = isToken ? tokenIds[position] : null;
    const title = isToken ? pieceText(this.payload.pieces[id]) : "after the last token";
    const heading = element("h3", { dir: "auto" }, element("bdi", { class: "piece" }, title));
    const facts = [`position ${number(position)}`];
    if (isToken) {
      facts.push(`id ${id}`);
      const segment = segmentNames(this.payload)[position];
      if (segment) facts.push(segment);
      if (texts[position] === "") facts.push("part of a character");
      else if (texts[position] !== this.payload.pieces[id]) facts.push(`completes ${texts[position]}`);
    }
    if (row === null) facts.push(position === 0 ? "the first token has no label" : "not labeled");
    else if (!this.rows.lossMask[row]) facts.push("outside the loss");
    this.place.replaceChildren(heading, element("p", { class: "facts" }, facts.join(" · ")));
    if (row === null) return;
    const at = rowAt(this.rows, row, temperature);
    if (this.lab && row < this.lab.numRows) {
      const quiet = [figures(this.figuresOf(row, at, isToken), "small"), this.bars.table, this.moreButton(position, row, temperature)];
      this.place.append(...quiet.filter(Boolean));
      this.move(row, id, temperature);
      return;
    }
    this.place.append(
      figures(this.figuresOf(row, at, isToken), "small"),
      this.table(row, at, id),
      ...[this.moreButton(position, row, temperature)].filter(Boolean),
    );
  }

  /** The student's bars to where the lab stands now. */
  move(row, id, temperature) {
    this.bars.update(this.lab.lines(row, temperature, id, this.all), id, this.lab.alpha < 1);
  }

  figuresOf(row, at, isToken) {
    const pairs = [["entropy, nats", number(at.entropy, 3)], ["tail", probability(at.logTail)]];
    const logprob = this.rows.labelLogprob[row];
    if (isToken && !Number.isNaN(logprob)) {
      pairs.push(["its p at T = 1", probability(logprob)], ["surprise, nats", number(-logprob, 3)]);
    }
    if (isToken && this.rows.labelRank[row] > 0) pairs.push(["rank", number(this.rows.labelRank[row])]);
    return pairs;
  }

  table(row, at, id) {
    const body = element("tbody");
    const count = this.all ? at.logprobs.length : Math.min(SHOWN_ENTRIES, at.logprobs.length);
    const start = row * this.rows.topK;
    for (let k = 0; k < count; k++) {
      const other = this.rows.tokenIds[start + k];
      const text = element("bdi", { class: "piece" }, pieceText(this.payload.pieces[other]));
      body.append(this.line(String(k + 1), text, String(other), at.logprobs[k], other === id ? "actual" : ""));
    }
    if (count < at.logprobs.length) {
      const rest = at.logprobs.slice(count).reduce((sum, value) => sum + Math.exp(value), 0);
      body.append(this.line("", `${at.logprobs.length - count} more stored`, "", Math.log(rest), "rest"));
    }
    const outside = this.rows.vocabSize - this.rows.count[row];
    body.append(this.line("", `tail: ${number(outside)} other ids`, "", at.logTail, "tail"));
    const heads = [["", "right"], ["alternative", ""], ["id", "right"], ["p", "right"], ["ln p", "right"]];
    return element("table", { class: "alternatives" }, tableHead(heads), body);
  }

  line(rank, text, id, logprob, kind) {
    const bar = element("span", { class: "fill" });
    bar.style.width = `${100 * Math.exp(logprob)}%`;
    return element(
      "tr",
      { class: kind },
      element("td", { class: "right quiet" }, rank),
      element("td", {}, text, element("span", { class: "track" }, bar)),
      element("td", { class: "right quiet" }, id),
      element("td", { class: "right" }, probability(logprob)),
      element("td", { class: "right quiet" }, Number.isFinite(logprob) ? logprob.toFixed(3) : "−∞"),
    );
  }

  moreButton(position, row, temperature) {
    const shown = this.lab && row < this.lab.numRows ? LAB_ENTRIES : SHOWN_ENTRIES;
    if (this.rows.count[row] <= shown) return null;
    const toggle = () => {
      this.all = !this.all;
      this.show(position, row, temperature);
    };
    const label = this.all ? `Show ${shown}` : `Show all ${this.rows.count[row]}`;
    return element("button", { type: "button", on: { click: toggle } }, label);
  }
}

function probability(logprob) {
  const p = Math.exp(logprob);
  if (p === 0) return "0";
  return p < 0.00095 ? p.toExponential(1) : `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)} %`;
}
