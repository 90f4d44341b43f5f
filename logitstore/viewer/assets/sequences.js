/* The list of a store's sequences, a page at a time. */

const PAGE_SIZE = 50;
let drawnList = "";
const EMPTY = "No sequence is committed yet. A unit appears here when its worker has finished it.";

/** What the address asks for, without what it leaves open. */
function questionOf(route) {
  const question = { text: route.text, where: route.where, order: route.order, descending: route.descending };
  return Object.fromEntries(Object.entries(question).filter(([, value]) => value));
}

async function showList(place, route, go) {
  const { store } = route;
  const page = route.page || 0;
  const question = questionOf(route);
  const answer = await source.sequences(store, page * PAGE_SIZE, PAGE_SIZE, question);
  const text = JSON.stringify([store, page, question, answer]);
  if (text === drawnList) return {}; // what a person has marked or focused stays
  drawnList = text;
  const pages = Math.max(1, Math.ceil(answer.total / PAGE_SIZE));
  const first = answer.start + 1;
  const range = answer.sequences.length
    ? `${number(first)} to ${number(first + answer.sequences.length - 1)} of ${number(answer.total)}`
    : `0 of ${number(answer.total)}`;
  const isAsked = Object.keys(question).length > 0;
  const turn = (symbol, label, enabled, target) => pageButton(symbol, label, enabled, () => go({ store, ...question, page: target }));
  const bar = element(
    "nav",
    { class: "bar", "aria-label": "Pages" },
    element("h2", { class: "grow" }, isAsked ? "Sequences found" : "Sequences"),
    answer.of ? jumpForm(answer.of, (index) => go({ store, sequence: index })) : null,
    element(
      "span",
      { class: "pager" },
      turn("«", "First", page > 0, 0),
      turn("‹", "Previous", page > 0, Math.min(page, pages) - 1),
      element("span", { id: "range" }, range),
      turn("›", "Next", page + 1 < pages, page + 1),
      turn("»", "Last", page + 1 < pages, pages - 1),
    ),
  );
  // The form stays as it is while a person types and what is found comes in.
  const form = place.querySelector("#find");
  const kept = form && form.dataset.question === JSON.stringify([store, question]) ? form : findForm(route, question, go);
  const isLooking = answer.looked < answer.of && !answer.problem;
  const none = isAsked ? "Nothing was found." : EMPTY;
  const beyond = `The list ends at page ${number(pages)}; the address asks for page ${number(page + 1)}.`;
  const empty = isLooking ? "Nothing found yet." : answer.total ? beyond : none;
  const parts = [
    bar,
    kept,
    progressLine(answer, isLooking),
    unmetLine(answer),
    answer.sequences.length ? sequenceTable(answer.sequences, store) : element("p", { class: "quiet" }, empty),
  ].filter(Boolean);
  for (const part of [...place.children]) if (!parts.includes(part)) part.remove();
  parts.forEach((part, at) => {
    if (place.children[at] !== part) place.insertBefore(part, place.children[at] || null);
  });
  // Where a store that is still filled would show more.
  return { pages, isLooking, isEnd: !answer.sequences.length || (!isAsked && page + 1 >= pages) };
}

/** How far the search is, and what a file does not hold. */
function progressLine(answer, isLooking) {
  if (answer.problem) return element("p", { class: "problem" }, `The search ended early: ${answer.problem}`);
  if (isLooking) {
    const words = `looked through ${number(answer.looked)} of ${number(answer.of)} sequences`;
    const bar = element("progress", { max: String(answer.of), value: String(answer.looked), "aria-label": words });
    return element("p", { class: "row", id: "looking" }, bar, element("span", {}, words));
  }
  if (answer.store > answer.of) {
    const words = `This file holds ${number(answer.of)} of the store's ${number(answer.store)} sequences. `;
    return element("p", { class: "quiet", id: "cut" }, words, "All of them: ", element("code", {}, "penumbra store view STORE"));
  }
  return null;
}

/** What the condition names and no sequence has: a misspelt flag, an id of another store. */
function unmetLine(answer) {
  if (!(answer.unmet || []).length) return null;
  return element("p", { class: "problem", id: "unmet" }, answer.unmet.map((sentence) => `${sentence}.`).join(" "));
}

const ORDERS = {
  "": "as stored", "length+": "longest first", length: "shortest first", "entropy+": "highest entropy first",
  entropy: "lowest entropy first", "surprise+": "most surprising first", surprise: "least surprising first",
};

function findForm(route, question, go) {
  const text = element("input", { type: "search", id: "text", value: question.text || "", placeholder: "id or text", "aria-label": "A part of the id or of the text" });
  const where = element("input", {
    type: "text", id: "where", list: "wheres", value: question.where || "", placeholder: "flags has truncated", "aria-label": "A condition, as for --where",
  });
  const examples = ["flags has truncated", "flags lacks truncated", "flags has repeated", "segments has reasoning", "segments has tool", "finish_reason = length", "num_tokens > 1000"];
  const wheres = element("datalist", { id: "wheres" }, ...examples.map((value) => element("option", { value })));
  const known = Object.entries(ORDERS).filter(([name]) => source.live || !/entropy|surprise/.test(name));
  const order = element("select", { id: "order", "aria-label": "Order" }, ...known.map(([value, words]) => element("option", { value }, words)));
  order.value = question.order ? question.order + (question.descending ? "+" : "") : "";
  const ask = () => {
    const named = { text: text.value, where: where.value, order: order.value.replace("+", ""), descending: order.value.endsWith("+") ? "1" : "" };
    go({ store: route.store, page: 0, ...questionOf(named) });
  };
  for (const input of [text, where]) {
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") ask();
    });
  }
  order.addEventListener("change", ask);
  return element(
    "div",
    { id: "find", class: "controls", role: "search", "data-question": JSON.stringify([route.store, question]) },
    text,
    source.live ? where : null,
    wheres,
    order,
    element("button", { type: "button", on: { click: ask } }, "Find"),
  );
}

function pageButton(symbol, label, enabled, action) {
  const button = element("button", { type: "button", "aria-label": label, title: label, on: { click: action } }, symbol);
  button.disabled = !enabled;
  return button;
}

function jumpForm(total, jump) {
  const input = element("input", {
    type: "number", id: "jump", min: "1", max: String(total), required: "", inputmode: "numeric",
    "aria-label": "Number of a sequence to open", placeholder: "number",
  });
  const open = () => {
    if (input.reportValidity()) jump(Number(input.value) - 1); // else the browser says what is wrong
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
        element("td", { class: "right" }, number(one.index + 1)),
        element("td", { class: "record" }, element("a", { href: target }, name)),
        element("td", { class: "right" }, number(one.num_tokens)),
        element("td", { class: "right" }, number(one.num_rows)),
        element("td", {}, [one.finish_reason, ...one.flags].join(", ")),
        element(
          "td",
          { class: "preview", dir: "auto" },
          element("span", { class: "asked" }, one.asked),
          one.num_turns > 1 ? element("span", { class: "quiet" }, ` (${one.num_turns} turns)`) : null,
          one.asked ? " " : null,
          element("span", { class: "quiet" }, one.answer),
        ),
      ),
    );
  }
  const heads = [["#", "right"], ["record", ""], ["tokens", "right"], ["rows", "right"], ["end", ""], ["conversation", ""]];
  return element("div", { class: "scroll" }, element("table", { class: "sequences" }, tableHead(heads), body));
}

/** Column heads from pairs of text and class. */
function tableHead(heads) {
  const cells = heads.map(([text, name]) => element("th", { scope: "col", class: name || null }, text));
  return element("thead", {}, element("tr", {}, ...cells));
}
