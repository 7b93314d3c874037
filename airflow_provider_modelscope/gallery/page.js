"use strict";
// As light or dark as Airflow around it is, on its ground, before anything is painted.
{
  const root = document.documentElement;
  const take = (theme) => {
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  };
  if (window.parent === window) {
    take(localStorage.getItem("theme")); // where Airflow's own pages keep it
  } else {
    root.dataset.framed = "";
    const airflow = window.parent.document.documentElement;
    const follow = () => {
      airflow.classList.forEach(take);
      root.style.setProperty("--ground", getComputedStyle(airflow).backgroundColor);
    };
    follow();
    new MutationObserver(follow).observe(airflow, { attributeFilter: ["class"] });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const REFRESH = 3000; // milliseconds between looks while images are still to come
  const dialog = document.getElementById("large");
  const picture = dialog.querySelector("img");
  const sentence = dialog.querySelector(".sentence");
  const copied = dialog.querySelector(".copied");
  let shown = null; // the key of the card in the dialog

  const cards = () => [...document.querySelectorAll("li.image")];
  const cardOf = (key) => cards().find((card) => card.dataset.key === key);

  // What a picture's address says where it gives no picture.
  const reason = async (url) => {
    try {
      const answer = await fetch(url);
      const isText = (answer.headers.get("content-type") || "").startsWith("text/plain");
      return isText ? await answer.text() : "This image cannot be shown.";
    } catch {
      return "Airflow does not answer.";
    }
  };

  const show = (card) => {
    const link = card.querySelector("a");
    shown = card.dataset.key;
    picture.hidden = false;
    sentence.hidden = true;
    picture.src = link.href;
    picture.alt = link.querySelector("img")?.alt || "";
    dialog.querySelector(".told").replaceChildren(card.querySelector("template").content.cloneNode(true));
    copied.textContent = "";
    const all = cards();
    for (const button of dialog.querySelectorAll("[data-step]")) {
      button.disabled = !all[all.indexOf(card) + Number(button.dataset.step)];
    }
    if (!dialog.open) dialog.showModal();
  };

  const step = (by) => {
    const all = cards();
    const next = all[all.indexOf(cardOf(shown)) + by];
    if (next) show(next);
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Over plain http there is no clipboard for pages, only what is selected.
      const area = document.createElement("textarea");
      area.value = text;
      dialog.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) {
        copied.textContent = "The browser did not let it be copied: select it above.";
        return;
      }
    }
    copied.textContent = "Copied.";
  };

  document.addEventListener("click", (event) => {
    const at = (selector) => event.target.closest(selector);
    const link = at("a[data-open]");
    if (link && !(event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      show(link.closest("li"));
    } else if (at("[data-copy]")) {
      copy(at("[data-copy]").dataset.copy);
    } else if (at("[data-step]")) {
      step(Number(at("[data-step]").dataset.step));
    } else if (at("[data-close]") || event.target === dialog) {
      dialog.close();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (dialog.open && event.key === "ArrowLeft") step(-1);
    if (dialog.open && event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("close", () => {
    picture.removeAttribute("src");
    cardOf(shown)?.querySelector("a").focus();
  });
  const broken = async (image) => {
    const url = image.src;
    const text = await reason(url);
    if (image.src !== url || !image.isConnected) return; // another one is shown by now, or it was told already
    if (image === picture) {
      picture.hidden = true;
      sentence.hidden = false;
      sentence.textContent = text;
    } else {
      const link = image.closest("a");
      link.classList.add("broken");
      link.textContent = text;
    }
  };
  document.addEventListener("error", (event) => event.target.src && broken(event.target), true);
  for (const image of document.images) {
    if (image.src && image.complete && !image.naturalWidth) broken(image); // it failed before this ran
  }

  // Takes what is new from another copy of the page; what has not changed stays as it is, with its focus.
  const take = (old, fresh, selector, update) => {
    const before = new Map([...old.querySelectorAll(`:scope > ${selector}`)].map((one) => [one.dataset.key, one]));
    let last = null;
    for (const one of fresh.querySelectorAll(`:scope > ${selector}`)) {
      const known = before.get(one.dataset.key);
      before.delete(one.dataset.key);
      const kept = known ? update(known, one) : document.adoptNode(one);
      const place = last ? last.nextElementSibling : old.querySelector(`:scope > ${selector}`);
      if (kept !== place) old.insertBefore(kept, place);
      last = kept;
    }
    for (const gone of before.values()) gone.remove();
  };
  const takeCard = (old, fresh) => {
    if (old.dataset.was === undefined) old.dataset.was = old.className === "image" ? "image" : old.textContent;
    const is = fresh.className === "image" ? "image" : fresh.textContent;
    if (old.dataset.was === is) return old;
    const taken = document.adoptNode(fresh);
    old.replaceWith(taken);
    return taken;
  };
  const refresh = async () => {
    const gallery = document.getElementById("gallery");
    if (gallery.dataset.live !== "true") return;
    try {
      const answer = document.hidden ? null : await fetch(location.href);
      if (answer?.ok) {
        const text = await answer.text();
        // Not the page's head, whose styles have a nonce that is not this page's.
        const main = text.slice(text.lastIndexOf("<main"), text.lastIndexOf("</main>"));
        const fresh = new DOMParser().parseFromString(main, "text/html").getElementById("gallery");
        gallery.dataset.live = fresh.dataset.live;
        for (const line of gallery.querySelectorAll(":scope > p")) line.remove();
        gallery.prepend(...fresh.querySelectorAll(":scope > p"));
        take(gallery, fresh, "section", (old, one) => {
          take(old.querySelector("ul"), one.querySelector("ul"), "li", takeCard);
          return old;
        });
      }
    } catch {
      // Airflow is away for a moment: the next look will tell.
    }
    setTimeout(refresh, REFRESH);
  };
  setTimeout(refresh, REFRESH);
});
