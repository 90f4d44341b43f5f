/* The list of a store's sequences, a page at a time. */

const PAGE_SIZE = 50;
const EMPTY = "No sequence is committed yet. A unit appears here when its worker has finished it.";

async function showList(place, store, page, go) {
  const answer = await source.sequences(store, page * PAGE_SIZE, PAGE_SIZE);
  const pages = Math.max(1, Math.ceil(answer.total / PAGE_SIZE));
  const last = answer.start + answer.sequences.length;
  const range = answer.sequences.length
    ? `${number(answer.start)} to ${number(last - 1)} of ${number(answer.total)}`
    : "0 of 0";
  const turn = (symbol, label, enabled, target) => pageButton(symbol, label, enabled, () => go({ store, page: target }));
  place.replaceChildren(
    element(
      "nav",
      { class: "bar", "aria-label": "Pages" },
      element("h2", { class: "grow" }, "Sequences"),
      answer.total ? jumpForm(answer.total, (index) => go({ store, sequence: index })) : null,
      element(
        "span",
        { class: "pager" },
        turn("«", "First", page > 0, 0),
        turn("‹", "Previous", page > 0, page - 1),
        element("span", { id: "range" }, range),
        turn("›", "Next", page + 1 < pages, page + 1),
        turn("»", "Last", page + 1 < pages, pages - 1),
      ),
    ),
    answer.sequences.length ? sequenceTable(answer.sequences, store) : element("p", { class: "quiet" }, EMPTY),
  );
  return { pages };
}

function pageButton(symbol, label, enabled, action) {
  const button = element("button", { type: "button", "aria-label": label, title: label, on: { click: action } }, symbol);
  button.disabled = !enabled;
  return button;
}

function jumpForm(total, jump) {
  const input = element("input", {
    type: "number", id: "jump", min: "0", max: String(total - 1), required: "", inputmode: "numeric",
    "aria-label": "Number of a sequence to open", placeholder: "number",
  });
  const open = () => {
    if (input.reportValidity()) jump(Number(input.value)); // else the browser says what is wrong
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") open();
  });
  return element("span", { class: "jump" }, input, element("button", { type: "button", on: { click: open } }, "Go"));
}

function sequenceTable(sequences, store) {
  const body = element("tbody");
  for (const one of sequences) {
    const target = `#store=${store}&sequence=${one.index}`;
    const name = one.sample_index ? `${one.record_id} · sample ${one.sample_index}` : one.record_id;
    body.append(
      element(
        "tr",
        {},
        element("td", { class: "right" }, number(one.index)),
        element("td", { class: "record" }, element("a", { href: target }, name)),
        element("td", { class: "right" }, number(one.num_tokens)),
        element("td", { class: "right" }, number(one.num_rows)),
        element("td", {}, [one.finish_reason, ...one.flags].join(", ")),
        element("td", { class: "preview", dir: "auto" }, one.preview.replace(/\s+/g, " ")),
      ),
    );
  }
  const heads = [["#", "right"], ["record", ""], ["tokens", "right"], ["rows", "right"], ["end", ""], ["text", ""]];
  return element("div", { class: "scroll" }, element("table", { class: "sequences" }, tableHead(heads), body));
}

/** Column heads from pairs of text and class. */
function tableHead(heads) {
  const cells = heads.map(([text, name]) => element("th", { scope: "col", class: name || null }, text));
  return element("thead", {}, element("tr", {}, ...cells));
}
