/* A sequence as text, each token on the colour of a figure of its label row. */

const LEVELS = 24;

const MEASURES = {
  entropy: { label: "entropy", unit: "nats", top: (rows) => Math.log(rows.vocabSize) },
  surprise: { label: "surprise at T = 1", unit: "nats", top: (rows) => Math.log(rows.vocabSize) },
  tail: { label: "mass of the tail", unit: "", top: () => 1 },
  kl: { label: "KL to the student", unit: "nats", top: (rows) => Math.log(rows.vocabSize) },
};
const FITTED_SHARE = 0.02;

/**
 * The values that the palest and the strongest colour stand for: nothing and the most there can be, or,
 * fitted, what all but a few tokens of the sequence lie between.
 */
function colourRange(values, measure, rows, isFitted) {
  const known = values.filter((value) => !Number.isNaN(value)).sort();
  if (!isFitted || !known.length) return [0, MEASURES[measure].top(rows)];
  const at = (share) => known[Math.round(share * (known.length - 1))];
  const [low, high] = [at(FITTED_SHARE), at(1 - FITTED_SHARE)];
  return high > low ? [low, high] : [0, MEASURES[measure].top(rows)];
}

/** The figure of every row, by measure; NaN where it is not known. */
function measureRows(rows, measure, temperature) {
  const values = new Float64Array(rows.numRows);
  for (let i = 0; i < rows.numRows; i++) {
    if (measure === "surprise") values[i] = -rows.labelLogprob[i];
    else {
      const row = rowAt(rows, i, temperature);
      values[i] = measure === "tail" ? Math.exp(row.logTail) : row.entropy;
    }
  }
  return values;
}

class HeatMap {
  /** `select(position)` is called when a person chooses a token. */
  constructor(place, payload, rows, select) {
    this.place = place;
    this.payload = payload;
    this.rows = rows;
    this.select = select;
    this.selected = -1;
    this.cells = [];
    this.build();
    place.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-position]");
      if (cell) this.choose(Number(cell.dataset.position));
    });
    place.addEventListener("keydown", (event) => this.key(event));
  }

  rowOf(position) {
    const row = position - this.payload.label_start;
    return row >= 0 && row < this.rows.numRows ? row : null;
  }

  build() {
    const { texts, prompt_length: promptLength, label_start: start } = this.payload;
    const positions = Math.max(texts.length, start + this.rows.numRows);
    const segments = segmentNames(this.payload);
    const fragment = document.createDocumentFragment();
    for (let position = 0; position < positions; position++) {
      const cell = document.createElement("span");
      cell.id = `p${position}`;
      cell.dataset.position = position;
      cell.setAttribute("role", "option");
      cell.append(cellText(position < texts.length ? texts[position] : null));
      cell.dataset.kind = position >= texts.length ? "next" : position < promptLength ? "prompt" : "token";
      if (position < segments.length && segments[position] !== "context") cell.dataset.segment = segments[position];
      if (texts[position] === "") cell.dataset.part = "";
      if (position === promptLength && position > 0) cell.dataset.first = "";
      this.cells.push(cell);
      fragment.append(cell);
    }
    this.place.replaceChildren(fragment);
  }

  /** Colour by values of the rows, from the palest colour at `low` to the strongest at `high`. */
  paint(values, [low, high]) {
    for (let position = 0; position < this.cells.length; position++) {
      const cell = this.cells[position];
      const row = this.rowOf(position);
      let name = "t";
      if (row === null || Number.isNaN(values[row])) delete cell.dataset.value;
      else {
        const share = (values[row] - low) / (high - low);
        const level = Math.round(Math.min(Math.max(share, 0), 1) * LEVELS);
        name = `t h${level}`;
        cell.dataset.value = values[row].toFixed(4);
        if (!this.rows.lossMask[row]) name += " unmasked";
      }
      cell.className = position === this.selected ? `${name} chosen` : name;
    }
  }

  choose(position) {
    const last = this.cells.length - 1;
    position = Math.min(Math.max(position, 0), last);
    if (this.selected >= 0) {
      this.cells[this.selected].classList.remove("chosen");
      this.cells[this.selected].removeAttribute("aria-selected");
    }
    this.selected = position;
    const cell = this.cells[position];
    cell.classList.add("chosen");
    cell.setAttribute("aria-selected", "true");
    this.place.setAttribute("aria-activedescendant", cell.id);
    this.reveal();
    this.select(position);
  }

  /** Bring the chosen token into view: in this page only, where scrollIntoView would move a page around it too. */
  reveal() {
    const cell = this.cells[this.selected];
    const { scrollMarginTop, scrollMarginBottom } = getComputedStyle(cell);
    const missing = (top, bottom) => {
      const box = cell.getClientRects()[0];
      if (!box) return 0; // nothing is shown yet
      const above = box.top - parseFloat(scrollMarginTop) - top;
      const below = box.bottom + parseFloat(scrollMarginBottom) - bottom;
      return above < 0 ? above : Math.max(below, 0);
    };
    const { top, bottom } = this.place.getBoundingClientRect();
    this.place.scrollTop += missing(top, bottom);
    window.scrollBy(0, missing(0, window.innerHeight));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowLeft: () => this.selected - 1,
      ArrowRight: () => this.selected + 1,
      ArrowUp: () => this.line(-1),
      ArrowDown: () => this.line(1),
      Home: () => 0,
      End: () => this.cells.length - 1,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.choose(moves[event.key]());
  }

  /** The token nearest above (-1) or below (1) the chosen one. */
  line(direction) {
    const from = this.cells[this.selected].getClientRects()[0];
    let best = this.selected;
    let lineTop = null;
    for (let at = this.selected + direction; at >= 0 && at < this.cells.length; at += direction) {
      const box = this.cells[at].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < box.height / 2) continue;
      if (lineTop === null) lineTop = box.top;
      if (Math.abs(box.top - lineTop) > box.height / 2) break;
      const better = best === this.selected || Math.abs(box.left - from.left) < Math.abs(this.cells[best].getClientRects()[0].left - from.left);
      if (better) best = at;
    }
    return best;
  }
}

/** The segment of each token; empty where they are not known. */
function segmentNames({ segments }) {
  return (segments || []).flatMap(([name, length]) => Array(length).fill(name));
}

/**
 * What stands for a token in the running text: null for the place after the last token. A token that is a
 * part of a character is an empty cell, so that letters still join.
 */
function cellText(text) {
  if (text === null) return "▸ next";
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
}

/** A token shown alone: spaces made visible. */
function pieceText(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}
