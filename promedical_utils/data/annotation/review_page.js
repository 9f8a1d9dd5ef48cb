// What review_page.Page shows: draws `view`, keeps what is typed, sends what is decided.

const STATES = {
  open: ["○", "to decide"],
  accept: ["✓", "accepted"],
  edit: ["✎", "edited"],
  reject: ["✗", "rejected"],
  add: ["+", "added"],
};
const KEYS = {
  a: "accept", e: "edit", r: "reject", u: "undo", n: "add", f: "finish",
  j: "next", ArrowDown: "next", k: "previous", ArrowUp: "previous", "[": "earlier", "]": "later",
};
const NEW = ""; // a criterion has its id from the store when it is saved
const PATIENCE_MS = 4000; // how long an answer may take before the page says that there is none

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== ""));
  return node;
}

function clock(stamp) {
  // "2031-05-06 07:08:09 UTC" in the reader's own time
  const time = new Date(stamp.replace(" UTC", "Z").replace(" ", "T"));
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString() : time.toLocaleString();
}

function render({ model, el }) {
  const me = Math.random(); // one model may be on show in two tabs
  let sent = 0;
  let waiting = null; // the message that has no answer yet
  let shown = null; // id of the draft that was drawn last
  let at = null; // id of the criterion that is decided on
  const typed = new Map(); // of each criterion with an open form, what its fields hold

  const head = make("div", { class: "pmr-head" });
  const alarm = make("div", { class: "pmr-alarm", role: "alert" });
  const message = make("section", { class: "pmr-message", "aria-label": "Message", tabindex: "0" });
  const list = make("ol", { class: "pmr-list", "aria-label": "Criteria of the draft" });
  const status = make("span", { class: "pmr-status", role: "status", "aria-live": "polite" });
  const buttons = make("div", { class: "pmr-buttons" });
  const root = make(
    "section",
    { class: "pmr", "aria-label": "Rubric review", tabindex: "0" },
    head, alarm,
    make("div", { class: "pmr-sides" }, message,
      make("section", { class: "pmr-draft", "aria-label": "Draft" }, list)),
    make("div", { class: "pmr-foot" }, buttons, status),
  );
  el.append(root);

  const item = () => model.get("view").item;
  const undecided = () => item().criteria.filter((criterion) => criterion.state === "open");
  const place = (id) => `${item().id} ${id}`; // key of `typed`: drafts may be left and come back to
  const formOf = (id) => typed.get(place(id));
  const rows = () => item().criteria.map((criterion) => criterion.id)
    .concat(formOf(NEW) ? [NEW] : []);

  function post(action) {
    if (waiting && Date.now() - waiting.since < PATIENCE_MS) return; // it is about the old page
    sent += 1;
    waiting = { number: sent, since: Date.now(), action, place: item() && place(at) };
    const given = { action, item: item() && item().id, at, fields: item() && { ...formOf(at) } };
    try {
      model.send({ number: [me, sent], given });
    } catch {
      waiting.since = 0; // nobody there: say so at the next look
    }
    watch();
  }

  function open(form) {
    if (form === "add") at = NEW;
    const blank = { text: "", dimension: "safety", weight: "0" };
    const { text, dimension, weight } = item().criteria.find(({ id }) => id === at) || blank;
    if (!formOf(at)) typed.set(place(at), { form, text, dimension, weight, reason: "" });
    draw();
    list.querySelector("textarea").focus();
  }

  function move(step) {
    const all = rows();
    at = all[Math.min(Math.max(all.indexOf(at) + step, 0), all.length - 1)];
    draw();
  }

  // typed text lives in this page alone: the browser asks before it goes
  const leaving = (event) => { if (typed.size) event.preventDefault(); };
  window.addEventListener("beforeunload", leaving);

  const ACTIONS = {
    edit: () => open("edit"),
    reject: () => open("reject"),
    add: () => open("add"),
    next: () => move(1),
    previous: () => move(-1),
    save: () => post(formOf(at).form),
    cancel: () => { typed.delete(place(at)); draw(); },
  };

  function act(action) {
    if (ACTIONS[action]) ACTIONS[action]();
    else post(action);
  }

  function watch() {
    const silent = waiting && Date.now() - waiting.since > PATIENCE_MS;
    const since = waiting && waiting.since;
    const text = silent
      ? "NOT SAVED since " + (since ? new Date(since).toLocaleTimeString() : "just now") +
        ": the kernel does not answer. If it is busy, wait. If it was stopped, copy what you have " +
        "typed and run the cell again: what was saved before is there."
      : model.get("view").error;
    if (alarm.textContent !== text) alarm.textContent = text;
    alarm.hidden = !text;
    status.classList.toggle("pmr-waiting", waiting !== null);
  }

  function button(label, key, action, options = {}) {
    return make(
      "button",
      { type: "button", "data-action": action, disabled: options.disabled, class: options.class,
        "aria-keyshortcuts": key,
        onclick: (event) => { event.stopPropagation(); act(action); } },
      label,
      key ? make("kbd", { "aria-hidden": "true" }, key.replace("Control+Enter", "Ctrl+↵")) : null,
    );
  }

  function labelled(text, field) {
    return make("label", {}, text, field);
  }

  function form(fields) {
    const field = (tag, name, attributes, ...children) => {
      const keep = () => { fields[name] = node.value; };
      const node = make(tag, { name, ...attributes, oninput: keep }, ...children);
      node.value = fields[name];
      return node;
    };
    const parts = [];
    if (fields.form === "reject") {
      parts.push(labelled("Why is it rejected?", field("textarea", "reason", { rows: 2 })));
    } else {
      const known = model.get("view").dimensions;
      const strange = known.includes(fields.dimension) ? [] : [fields.dimension];
      const choice = field("select", "dimension", {},
        ...strange.map((name) => make("option", { value: name }, `${name} (no such dimension)`)),
        ...known.map((name) => make("option", { value: name }, name)));
      const weight = field("input", "weight", { inputmode: "decimal", size: "6" });
      const share = labelled("Weight, 0 to 1", weight);
      const show = () => { share.hidden = choice.value !== "proficiency"; };
      choice.addEventListener("change", show);
      show();
      parts.push(
        labelled("Criterion", field("textarea", "text", { rows: 3 })),
        make("div", { class: "pmr-row" }, labelled("Dimension", choice), share),
        labelled("Reason, if you like", field("textarea", "reason", { rows: 1 })),
      );
    }
    const word = { edit: "Save edit", reject: "Save rejection", add: "Save addition" }[fields.form];
    return make(
      "div", { class: "pmr-form", role: "group", "aria-label": word },
      ...parts,
      make("div", { class: "pmr-row" },
        button(word, "Control+Enter", "save", { class: "pmr-main" }),
        button("Cancel", null, "cancel")),
    );
  }

  function card(criterion, number) {
    const [mark, word] = STATES[criterion.state];
    const current = criterion.id === at;
    const fields = formOf(criterion.id);
    const tools = make("div", { class: "pmr-row pmr-tools" });
    if (current && !fields && criterion.state === "add") {
      tools.append(button("Edit", "e", "edit"), button("Take back", "u", "undo"));
    } else if (current && !fields) {
      // all three alike: none is to be the one that is pressed without thought
      tools.append(button("Accept", "a", "accept"), button("Edit", "e", "edit"),
                   button("Reject", "r", "reject"));
      if (criterion.state !== "open") tools.append(button("Undo", "u", "undo"));
    }
    return make(
      "li",
      { class: `pmr-card pmr-${criterion.state}`, "aria-current": current ? "true" : null,
        "data-criterion": criterion.id, tabindex: "-1",
        style: `border-left-color:${criterion.colour}`,
        onclick: () => { if (!current) { at = criterion.id; draw(); } } },
      make("div", { class: "pmr-top" },
        make("span", { class: "pmr-number" }, String(number)),
        make("span", { class: "pmr-dimension", style: `color:${criterion.colour}` },
          criterion.dimension),
        make("span", { class: "pmr-weight" },
          Number(criterion.weight) ? `weight ${Number(criterion.weight).toFixed(2)}` : ""),
        make("span", { class: "pmr-state" }, make("span", { "aria-hidden": "true" }, `${mark} `),
          fields && !current ? `${word}, typed text waits` : word)),
      current && fields && fields.form !== "reject" ? null
        : make("p", { class: "pmr-text" }, criterion.text || "(no text)"),
      criterion.was ? make("p", { class: "pmr-was" }, "was: ", criterion.was) : null,
      criterion.reason ? make("p", { class: "pmr-was" }, "reason: ", criterion.reason) : null,
      current && fields ? form(fields) : tools,
    );
  }

  function draw() {
    const view = model.get("view");
    const inside = root.contains(document.activeElement);
    list.replaceChildren();
    buttons.replaceChildren();
    message.replaceChildren();
    let progress = "";
    if (view.item) {
      const { criteria, done, reason, source } = view.item;
      const left = undecided().length;
      const unsaved = rows().filter(formOf).length;
      progress = done ? " · this one is finished; a new decision opens it again"
        : ` · ${left} to decide here`;
      message.innerHTML = view.item.message; // escaped where it was made, in rubric/display.py
      message.prepend(make("p", { class: "pmr-source" },
        "Source of the message: ", make("b", {}, source)));
      if (reason) {
        list.append(make("li", { class: "pmr-reason" },
          make("b", {}, "Held for review: "), reason));
      }
      const added = { id: NEW, state: "open", dimension: "new criterion", colour: "#555" };
      const cards = formOf(NEW) ? [...criteria, added] : criteria;
      list.append(...cards.map((criterion, n) => card(criterion, n + 1)));
      buttons.append(
        button("Back", "k", "previous"), button("Next", "j", "next"),
        button("Add criterion", "n", "add"),
        button(left + unsaved ? `Finish (${left + unsaved} left)` : "Finish", "f", "finish",
          left + unsaved || done ? { disabled: true } : { class: "pmr-main" }));
    }
    head.replaceChildren(
      make("b", {}, view.item ? `Rubric ${view.item.place} of ${view.total}`
        : "No draft is left for you"),
      ` · ${view.finished} finished`, progress, ` · reviewer ${view.reviewer}`,
      make("span", { class: "pmr-hint" }),
    );
    buttons.append(button("Earlier rubric", "[", "earlier"), button("Later rubric", "]", "later"));
    const current = list.querySelector("[aria-current]");
    if (inside) {
      const field = current && current.querySelector("textarea");
      (field || current || root).focus({ preventScroll: true });
      if (current) current.scrollIntoView({ block: "nearest" });
    }
  }

  function update() {
    const { item: now, error, answered: [who, number] = [] } = model.get("view");
    if (waiting && who === me && number === waiting.number) {
      if (STATES[waiting.action] && !error) decided();
      waiting = null;
    }
    if ((now && now.id) !== shown) [shown, at] = [now && now.id, null];
    if (now && !rows().includes(at)) at = (undecided()[0] || now.criteria[0] || { id: NEW }).id;
    const when = now && now.saved_at;
    status.textContent = when ? `Saved ${clock(when)}` : "Every decision is saved at once";
    draw();
    watch();
  }

  function decided() {
    typed.delete(waiting.place);
    if (waiting.place !== place(at)) return; // the reviewer has gone elsewhere meanwhile
    const ids = item().criteria.map((criterion) => criterion.id);
    const after = undecided().find(({ id }) => ids.indexOf(id) > ids.indexOf(at));
    at = (after || undecided()[0] || { id: at || ids.at(-1) }).id;
  }

  root.addEventListener("keydown", (event) => {
    const inField = event.target.closest("input, textarea, select");
    const control = event.ctrlKey || event.metaKey;
    const plain = !inField && !control && !event.altKey;
    const action = control && event.key === "Enter" ? "save" : plain && KEYS[event.key];
    event.stopPropagation(); // or JupyterLab takes it too: "b" adds a cell, "x" cuts this one
    if (event.key === "Escape" && inField) {
      root.focus({ preventScroll: true }); // the text stays: only Cancel throws it away
    } else if (action) {
      event.preventDefault();
      const button = root.querySelector(`[data-action="${action}"]:enabled`);
      if (button) button.click();
      else if (action === "edit") list.querySelector("textarea")?.focus(); // of the open form
    }
  });
  const timer = setInterval(watch, 1000);
  model.on("change:view", update);
  update();

  return () => {
    clearInterval(timer);
    window.removeEventListener("beforeunload", leaving);
    model.off("change:view", update);
  };
}

export default { render };
