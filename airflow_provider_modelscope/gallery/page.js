"use strict";
// Follow Airflow's theme and background before the first paint.
{
  const root = document.documentElement;
  const setTheme = (theme) => {
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  };
  if (window.parent === window) {
    setTheme(localStorage.getItem("theme")); // set by Airflow's own pages
  } else {
    root.dataset.framed = "";
    const airflow = window.parent.document.documentElement;
    const follow = () => {
      airflow.classList.forEach(setTheme);
      root.style.setProperty("--background", getComputedStyle(airflow).backgroundColor);
    };
    follow();
    new MutationObserver(follow).observe(airflow, { attributeFilter: ["class"] });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const REFRESH_INTERVAL = 3000; // milliseconds, or as many as there are cards times 3
  const MAX_CHUNKS = 500; // of 20 cards; proxies limit a header to 8 kB
  const FINISHED = 5; // times as long after the end of the run, which a person can clear
  const dialog = document.querySelector("dialog");
  const fullSize = dialog.querySelector("img");
  const message = dialog.querySelector(".message");
  let shown = null; // the key of the card in the dialog

  // Times are written here, once a second: an unchanged state then has the same text on the server.
  const ahead = Number(document.body.dataset.now || 0) * 1000 - Date.now(); // the clock of the server
  const duration = (seconds) => {
    if (seconds < 100) return `${Math.max(0, Math.floor(seconds))} s`;
    if (seconds < 6000) return `${Math.floor(seconds / 60)} min`;
    return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
  };
  const clock = (seconds, ofDay = {}) => {
    const options = { ...ofDay, hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    try {
      const timeZone = JSON.parse(localStorage.getItem("timezone")) || undefined; // set by Airflow's own pages
      return new Date(seconds * 1000).toLocaleString("en", { ...options, timeZone });
    } catch {
      return new Date(seconds * 1000).toLocaleString("en", options);
    }
  };
  const write = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };
  const writeTimes = () => {
    const now = (Date.now() + ahead) / 1000;
    for (const time of document.querySelectorAll("time[data-at]")) write(time, clock(Number(time.dataset.at)));
    for (const time of document.querySelectorAll("time[data-since]")) {
      write(time, duration(now - Number(time.dataset.since)));
    }
  };
  writeTimes();
  setInterval(writeTimes, 1000);
  for (const time of document.querySelectorAll("time[data-date]")) {
    write(time, clock(Number(time.dataset.date), { year: "numeric", month: "short", day: "numeric" }));
  }

  const cards = () => [...document.querySelectorAll("li.image")].filter((card) => card.checkVisibility());
  const cardOf = (key) => cards().find((card) => card.dataset.key === key);

  // Why an image did not load: the text that its URL returns instead.
  const reason = async (url) => {
    try {
      const response = await fetch(url);
      const isText = (response.headers.get("content-type") || "").startsWith("text/plain");
      return isText ? await response.text() : "This image cannot be shown.";
    } catch {
      return "Airflow does not respond.";
    }
  };

  const show = (card) => {
    const link = card.querySelector("a");
    shown = card.dataset.key;
    fullSize.hidden = false;
    message.hidden = true;
    fullSize.src = link.href;
    fullSize.alt = link.querySelector("img")?.alt || "";
    const details = dialog.querySelector(".details");
    const template = card.querySelector("template");
    details.replaceChildren(template.content.cloneNode(true));
    details.scrollTop = 0;
    for (const button of details.querySelectorAll("[data-run-again]")) button.hidden = !triggerButton();
    dialog.querySelector(".caption").textContent = template.dataset.title;
    showPosition();
    if (!dialog.open) dialog.showModal();
  };
  const showPosition = () => {
    const all = cards();
    const index = all.indexOf(cardOf(shown));
    dialog.querySelector(".position").textContent = index < 0 ? "" : `${index + 1} of ${all.length}`;
    for (const button of dialog.querySelectorAll("[data-step]")) {
      const isFocused = button === document.activeElement;
      button.disabled = index < 0 || !all[index + Number(button.dataset.step)];
      if (isFocused && button.disabled) dialog.querySelector("[data-close]").focus();
    }
  };

  const step = (by) => {
    const all = cards();
    const next = all[all.indexOf(cardOf(shown)) + by];
    if (next) show(next);
  };

  const copy = async (button) => {
    let done = true;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      // Browsers offer the clipboard API over HTTPS only; copying a selection also works over HTTP.
      const area = document.createElement("textarea");
      area.value = button.dataset.copy;
      button.after(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    const label = button.label || [...button.childNodes];
    button.label = label; // a second click comes before the label is back
    button.style.minWidth = `${button.offsetWidth}px`; // the others stay where they are
    button.textContent = done ? "Copied" : "The browser does not allow this";
    clearTimeout(button.timer);
    button.timer = setTimeout(() => button.replaceChildren(...label), 2000);
  };

  // Airflow has no address of a filled trigger form, so this opens the form of the page around and fills it in.
  const airflow = window.parent.document;
  const triggerButton = () =>
    "framed" in document.documentElement.dataset && airflow.querySelector("[data-testid='trigger-dag-button']:enabled");
  const fill = (field, value) => {
    const { HTMLTextAreaElement: Area, HTMLInputElement: Input, Event, FocusEvent, KeyboardEvent } = window.parent;
    const control = field.matches("input, textarea") ? field : field.querySelector("input");
    if (!control) return;
    const happen = (event) => control.dispatchEvent(event);
    const type = control instanceof Area ? Area : Input;
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    const isText = control === field; // otherwise a list of choices, which shows those that match
    if (isText) happen(new FocusEvent("focusin", { bubbles: true }));
    Object.getOwnPropertyDescriptor(type.prototype, "value").set.call(control, text); // as React expects it
    happen(new Event("input", { bubbles: true }));
    const choose = new KeyboardEvent("keydown", { key: "Enter", bubbles: true });
    const last = isText ? new FocusEvent("focusout", { bubbles: true }) : choose;
    setTimeout(() => happen(last), 50); // React has updated the field
  };
  const runAgain = (conf) => {
    const fieldOf = (name) => airflow.getElementById(`element_${name}`) || airflow.querySelector(`[name='element_${name}']`);
    const missing = new Map(Object.entries(conf));
    let tries = 50;
    triggerButton().click();
    const fillIn = () => {
      for (const [name, value] of missing) {
        const field = fieldOf(name);
        if (field) fill(field, value);
        if (field) missing.delete(name);
      }
      tries -= 1;
      if (missing.size && tries) setTimeout(fillIn, 100); // until Airflow shows the form
    };
    fillIn();
  };

  // Show only the cards of one kind. The address keeps which, for a reload and for links.
  const gallery = document.getElementById("gallery");
  const press = (place) => {
    for (const button of place.querySelectorAll("[data-filter]")) {
      button.setAttribute("aria-pressed", button.dataset.filter === gallery.dataset.only);
    }
  };
  const filter = (kind) => {
    const exists = gallery.querySelector(`[data-filter="${CSS.escape(kind || "")}"]:enabled`);
    if (exists) gallery.dataset.only = kind;
    else delete gallery.dataset.only;
    press(gallery);
    const hash = exists ? `#${kind}` : "";
    if (location.hash !== hash) history.replaceState(null, "", hash || location.pathname + location.search);
  };
  const followAddress = () => filter(location.hash.slice(1));
  if (location.hash) followAddress();
  window.addEventListener("hashchange", followAddress);

  document.addEventListener("click", (event) => {
    const at = (selector) => event.target.closest(selector);
    const link = at("a[data-open]");
    const away = at("a[target], a[download]");
    if (away && "framed" in document.documentElement.dataset) {
      // Airflow's frame may not open other pages, but Airflow's own page may.
      event.preventDefault();
      const copied = window.parent.document.createElement("a");
      copied.href = new URL(away.dataset.framedHref || away.href, location.href).href;
      copied.target = event.ctrlKey || event.metaKey ? "_blank" : away.target;
      if (away.hasAttribute("download")) copied.download = away.download;
      copied.rel = "noopener";
      copied.click();
      return;
    }
    if (link && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      show(link.closest("li"));
    } else if (at("[data-run-again]")) {
      runAgain(JSON.parse(at("[data-run-again]").dataset.runAgain));
    } else if (at("[data-copy]")) {
      copy(at("[data-copy]"));
    } else if (at("[data-filter]")) {
      filter(at("[aria-pressed='false']")?.dataset.filter);
    } else if (at("[data-step]")) {
      step(Number(at("[data-step]").dataset.step));
    } else if (at("[data-close]")) {
      dialog.close();
    }
  });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (dialog.open && by) dialog.querySelector(`[data-step="${by}"]`).click(); // unless it is disabled
  });
  dialog.addEventListener("close", () => {
    fullSize.removeAttribute("src");
    cardOf(shown)?.querySelector("a").focus();
  });
  const showReason = async (image) => {
    const url = image.src;
    const text = await reason(url);
    if (image.src !== url || !image.isConnected) return; // it shows another image now, or its reason already
    if (image === fullSize) {
      fullSize.hidden = true;
      message.hidden = false;
      message.textContent = text;
    } else {
      const link = image.closest("a");
      link.classList.add("broken");
      link.textContent = text;
    }
  };
  document.addEventListener("error", (event) => event.target.src && showReason(event.target), true);
  for (const image of document.images) {
    if (image.src && image.complete && !image.naturalWidth) showReason(image); // failed before this script ran
  }

  // Update the children of a list from those of another copy of the page. Unchanged ones keep their focus.
  const merge = (list, newList, selector, update) => {
    const items = [...list.querySelectorAll(`:scope > ${selector}`)];
    const existing = new Map(items.map((item) => [item.dataset.key, item]));
    const chunks = Map.groupBy(items, (item) => item.dataset.chunk);
    let last = null;
    for (const newItem of newList.querySelectorAll(`:scope > ${selector}`)) {
      const known = newItem.dataset.known; // instead of these items, which this page has already
      for (const one of known ? chunks.get(known) || [] : [newItem]) {
        const old = existing.get(one.dataset.key);
        existing.delete(one.dataset.key);
        const item = one === old ? old : old ? update(old, one) : document.adoptNode(one);
        const next = last ? last.nextElementSibling : list.querySelector(`:scope > ${selector}`);
        if (item !== next) list.insertBefore(item, next);
        last = item;
      }
    }
    for (const removed of existing.values()) removed.remove();
  };
  const updateCard = (card, newCard) => {
    card.dataset.chunk = newCard.dataset.chunk;
    const contentOf = (one) => {
      const copy = one.cloneNode(true);
      for (const part of copy.querySelectorAll("time")) part.textContent = ""; // written by this script
      for (const part of copy.querySelectorAll("a[data-open]")) part.replaceWith(part.getAttribute("href"));
      for (const part of copy.querySelectorAll("details")) part.open = false; // the user may read it
      return copy.outerHTML;
    };
    if (contentOf(card) === contentOf(newCard)) return card;
    const controls = (one) => [...one.querySelectorAll("a, button, summary")];
    const focused = controls(card).indexOf(document.activeElement);
    const adopted = document.adoptNode(newCard);
    card.replaceWith(adopted);
    controls(adopted)[focused]?.focus();
    return adopted;
  };
  const replacePart = (part, newPart) => {
    const controls = (one) => [...one.querySelectorAll("a, button")];
    const focused = controls(part).indexOf(document.activeElement);
    part.replaceWith(newPart);
    controls(newPart)[focused]?.focus();
  };
  const updateParts = (place, newPlace) => {
    for (const part of place.querySelectorAll(":scope > [data-part]")) {
      const newPart = newPlace.querySelector(`:scope > [data-part="${part.dataset.part}"]`);
      if (newPart && !part.isEqualNode(newPart)) replacePart(part, document.adoptNode(newPart));
    }
  };
  const update = (newGallery) => {
    press(newGallery);
    updateParts(gallery, newGallery);
    merge(gallery, newGallery, "section", (section, newSection) => {
      updateParts(section, newSection);
      merge(section.querySelector(".items"), newSection.querySelector(".items"), "li", updateCard);
      return section;
    });
    filter(gallery.dataset.only);
    if (dialog.open) {
      const card = cardOf(shown);
      if (card && card.querySelector("a").href !== fullSize.src) show(card); // it has been generated again
      else showPosition();
    }
    writeTimes();
    gallery.dataset.live = newGallery.dataset.live;
    gallery.dataset.etag = newGallery.dataset.etag; // last: what failed to be shown is asked for again
  };
  const problem = document.getElementById("problem");
  let timer = null;
  let isAsking = false;
  const refresh = async () => {
    if (document.hidden || isAsking) return; // until it is visible
    isAsking = true;
    const chunks = new Set([...document.querySelectorAll("[data-chunk]")].map((card) => card.dataset.chunk));
    const known = [...chunks].slice(0, MAX_CHUNKS).join(",");
    const headers = { "Known-Chunks": known, "If-None-Match": gallery.dataset.etag };
    try {
      const response = await fetch(location.href, { headers, cache: "no-store" });
      const text = await response.text();
      const main = text.slice(text.lastIndexOf("<main"), text.lastIndexOf("</main>")); // no inline style
      const page = new DOMParser().parseFromString(main, "text/html").getElementById("gallery");
      if (response.status === 200) update(page);
      const isError = ![200, 304].includes(response.status);
      problem.replaceChildren(...(isError ? page.querySelector("p").childNodes : []));
    } catch {
      problem.textContent = "This page cannot be updated now."; // the next refresh tries again
    }
    isAsking = false;
    wait();
  };
  const wait = () => {
    const interval = Math.max(REFRESH_INTERVAL, 3 * gallery.querySelectorAll("li").length);
    clearTimeout(timer);
    timer = setTimeout(refresh, gallery.dataset.live === "true" ? interval : FINISHED * interval);
  };
  if ("live" in gallery.dataset) {
    wait();
    document.addEventListener("visibilitychange", refresh);
  }
});
