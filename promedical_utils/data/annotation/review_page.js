// What review_page.Page shows: draws `view` and sends what the reviewer does. It decides nothing.

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
const ON_CRITERION = ["accept", "edit", "reject", "undo", "cancel"];
const OPENERS = ["edit", "reject", "add"];
const MOVES = ["next", "previous", "earlier", "later"];
const TYPING_MS = 300; // how long after the last letter the text is kept
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
  let opening = 0; // the message that asked for a form: until it is there no key counts
  let typing = null; // timer, while typed text is not sent yet
  let drawn = "";
  let opened = ""; // which form is on show
  let seen = {}; // item and criterion on show: what is decided is what was seen
  const waiting = new Map(); // number of a message -> when it was sent

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

  const formOf = (item) => (item && item.form ? `${item.id} ${item.at} ${item.form.form}` : "");

  const fields = () => {
    const found = {};
    for (const field of list.querySelectorAll("[name]")) found[field.name] = field.value;
    return found;
  };

  function post(action, more) {
    sent += 1;
    waiting.set(sent, Date.now());
    try {
      model.send({ number: [me, sent], action, item: seen.item, ...more });
    } catch {
      waiting.set(sent, 0); // nobody there: say so at the next look
    }
    watch();
  }

  function keepTyped() {
    if (typing === null) return;
    clearTimeout(typing);
    typing = null;
    post("type", { at: seen.at, fields: fields() });
  }

  function act(action, more) {
    if (action === "save") {
      clearTimeout(typing);
      typing = null;
      return post("save", { at: seen.at, fields: fields() });
    }
    keepTyped(); // in this order, so that moving on loses no letter
    post(action, { ...(ON_CRITERION.includes(action) ? { at: seen.at } : {}), ...more });
    if (OPENERS.includes(action)) opening = sent;
  }

  function watch() {
    const view = model.get("view");
    const oldest = Math.min(Infinity, ...waiting.values());
    const silent = Date.now() - oldest > PATIENCE_MS;
    const text = silent
      ? "NOT SAVED since " + (oldest ? new Date(oldest).toLocaleTimeString() : "just now") +
        ": the kernel does not answer. If it is busy, wait. If it was stopped, run the cell " +
        "again: what was saved before is there; copy what you have typed since."
      : view.error;
    if (alarm.textContent !== text) alarm.textContent = text;
    alarm.hidden = !text;
    status.classList.toggle("pmr-waiting", waiting.size > 0);
  }

  function button(label, key, action, more, options = {}) {
    return make(
      "button",
      { type: "button", "data-action": action, disabled: options.disabled, class: options.class,
        "aria-keyshortcuts": key,
        onclick: (event) => { event.stopPropagation(); act(action, more); } },
      label,
      key ? make("kbd", { "aria-hidden": "true" }, key.replace("Control+Enter", "Ctrl+↵")) : null,
    );
  }

  function labelled(text, field) {
    return make("label", {}, text, field);
  }

  function form(view, typed) {
    const type = () => {
      clearTimeout(typing);
      typing = setTimeout(keepTyped, TYPING_MS);
    };
    const area = (name, rows) => {
      const field = make("textarea", { name, rows, oninput: type });
      field.value = typed[name];
      return field;
    };
    const parts = [];
    if (typed.form === "reject") {
      parts.push(labelled("Why is it rejected?", area("reason", 2)));
    } else {
      const choice = make("select", { name: "dimension", oninput: type });
      const known = view.dimensions.includes(typed.dimension);
      for (const name of known ? view.dimensions : [typed.dimension, ...view.dimensions]) {
        const strange = view.dimensions.includes(name) ? "" : " (no such dimension)";
        const selected = name === typed.dimension;
        choice.append(make("option", { value: name, selected }, name + strange));
      }
      const given = { name: "weight", inputmode: "decimal", size: "6", oninput: type };
      const weight = make("input", given);
      weight.value = typed.weight;
      const share = labelled("Weight, 0 to 1", weight);
      const show = () => { share.hidden = choice.value !== "proficiency"; };
      choice.addEventListener("change", show); // a change is dispatched when the form is drawn
      parts.push(
        labelled("Criterion", area("text", 3)),
        make("div", { class: "pmr-row" }, labelled("Dimension", choice), share),
        labelled("Reason, if you like", area("reason", 1)),
      );
    }
    const word = { edit: "Save edit", reject: "Save rejection", add: "Save addition" }[typed.form];
    return make(
      "div", { class: "pmr-form", role: "group", "aria-label": word },
      ...parts,
      make("div", { class: "pmr-row" },
        button(word, "Control+Enter", "save", undefined, { class: "pmr-main" }),
        button("Cancel", null, "cancel")),
    );
  }

  function card(view, criterion) {
    const [mark, word] = STATES[criterion.state];
    const current = criterion.id === view.item.at;
    const typed = current ? view.item.form : null;
    const state = criterion.typed && !typed ? word + ", typed text waits" : word;
    const tools = make("div", { class: "pmr-row pmr-tools" });
    if (current && !typed && !view.closed) {
      if (criterion.state === "add") {
        tools.append(button("Edit", "e", "edit"), button("Take back", "u", "undo"));
      } else {
        // all three alike: none is to be the one that is pressed without thought
        tools.append(button("Accept", "a", "accept"), button("Edit", "e", "edit"),
                     button("Reject", "r", "reject"));
        if (criterion.state !== "open") tools.append(button("Undo", "u", "undo"));
      }
    }
    return make(
      "li",
      { class: `pmr-card pmr-${criterion.state}`, "aria-current": current ? "true" : null,
        "data-criterion": criterion.id, tabindex: "-1",
        style: `border-left-color:${criterion.colour}`,
        onclick: () => { if (!current) act("select", { at: criterion.id }); } },
      make("div", { class: "pmr-top" },
        make("span", { class: "pmr-number" }, String(criterion.number)),
        make("span", { class: "pmr-dimension", style: `color:${criterion.colour}` },
          criterion.dimension || "new criterion"),
        make("span", { class: "pmr-weight" }, criterion.weight && `weight ${criterion.weight}`),
        make("span", { class: "pmr-state" },
          make("span", { "aria-hidden": "true" }, `${mark} `), state)),
      typed && typed.form !== "reject" ? null
        : make("p", { class: "pmr-text" }, criterion.text || "(no text)"),
      criterion.was ? make("p", { class: "pmr-was" }, "was: ", criterion.was) : null,
      criterion.reason ? make("p", { class: "pmr-was" }, "reason: ", criterion.reason) : null,
      typed ? form(view, typed) : tools,
    );
  }

  function draw(view) {
    const item = view.item;
    head.replaceChildren(
      make("b", {}, item ? `Rubric ${item.place} of ${view.total}` : "No draft is left for you"),
      ` · ${view.finished} finished`,
      !item ? "" : item.done ? " · this one is finished; a new decision opens it again"
        : ` · ${item.left} to decide here`,
      ` · reviewer ${view.reviewer}`,
      make("span", { class: "pmr-hint" }),
    );
    list.replaceChildren();
    buttons.replaceChildren();
    if (!item) {
      message.replaceChildren();
    } else {
      message.innerHTML = item.message; // escaped where it was made, in cards.py
      message.prepend(make("p", { class: "pmr-source" },
        "Source of the message: ", make("b", {}, item.source)));
      if (item.reason) {
        list.append(make("li", { class: "pmr-reason" },
          make("b", {}, "Held for review: "), item.reason));
      }
      for (const criterion of item.criteria) list.append(card(view, criterion));
      if (!view.closed) {
        buttons.append(
          button("Back", "k", "previous"), button("Next", "j", "next"),
          button("Add criterion", "n", "add"),
          button(item.left ? `Finish (${item.left} left)` : "Finish", "f", "finish", undefined,
            item.left || item.done ? { disabled: true } : { class: "pmr-main" }));
      }
    }
    if (!view.closed) {
      buttons.append(button("Earlier rubric", "[", "earlier"),
                     button("Later rubric", "]", item ? "later" : "next"));
    }
  }

  function update() {
    const view = model.get("view");
    const [who, answered] = view.answered || [];
    for (const number of waiting.keys()) {
      if (who === me && number <= answered) waiting.delete(number);
    }
    const item = view.item;
    const saved = item && item.saved_at;
    const when = saved ? `Saved ${clock(saved)}` : "Every decision is saved at once";
    status.textContent = view.said ? `${when}: ${view.said}` : when;
    // an answer to typing changes nothing that is drawn: the field being typed in stays as it is
    const shown = item && { ...item, saved_at: 0, form: item.form && item.form.form };
    const now = JSON.stringify({ ...view, item: shown, said: 0, error: 0, answered: 0 });
    if (now !== drawn) {
      const inside = root.contains(document.activeElement);
      const same = opened === formOf(item);
      keepTyped();
      const newest = same ? fields() : {}; // what stands in the field is newer than what was kept
      draw(view);
      for (const field of list.querySelectorAll("[name]")) {
        if (field.name in newest) field.value = newest[field.name];
        if (field.name === "dimension") field.dispatchEvent(new Event("change"));
      }
      [drawn, opened, seen] = [now, formOf(item), { item: item && item.id, at: item && item.at }];
      const current = list.querySelector("[aria-current]");
      const field = current && current.querySelector("textarea");
      if (inside) (field || current || root).focus({ preventScroll: true });
      if (current && inside) current.scrollIntoView({ block: "nearest" });
    }
    watch();
  }

  root.addEventListener("keydown", (event) => {
    const inField = event.target.closest("input, textarea, select");
    const form = list.querySelector(".pmr-form");
    const plain = !inField && !event.ctrlKey && !event.metaKey && !event.altKey;
    event.stopPropagation(); // or JupyterLab takes it too: "b" adds a cell, "x" cuts this one
    if (event.key === "Escape" && inField) {
      root.focus({ preventScroll: true }); // the text stays: only Cancel throws it away
    } else if (form && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      act("save");
    } else if (plain && KEYS[event.key]) {
      event.preventDefault();
      if (waiting.has(opening)) return;
      const action = KEYS[event.key];
      if (!form || MOVES.includes(action)) act(action);
      else if (action === "edit") form.querySelector("textarea").focus();
    }
  });
  root.addEventListener("focusout", keepTyped);
  const hidden = () => { if (document.visibilityState === "hidden") keepTyped(); };
  document.addEventListener("visibilitychange", hidden);
  window.addEventListener("pagehide", keepTyped);
  const timer = setInterval(watch, 1000);
  model.on("change:view", update);
  update();

  return () => {
    clearInterval(timer);
    keepTyped();
    document.removeEventListener("visibilitychange", hidden);
    window.removeEventListener("pagehide", keepTyped);
    model.off("change:view", update);
  };
}

export default { render };
