"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const gallery = document.getElementById("cards");
  const cards = [...gallery.children].map((node) => ({
    node,
    text: node.textContent.toLowerCase() + " " + node.id,
    fate: [node.dataset.fate],
    source: [node.dataset.source],
    task: node.dataset.task.split("|"),
    reason: node.dataset.reason.split("|"),
  }));
  const rows = [...document.querySelectorAll("table.filterable tbody tr")];
  // The filters live in the address, so that a view of the page can be passed on.
  const recall = () => {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      const field = form.elements[name];
      if (!field) continue;
      if (field.type === "checkbox") field.checked = value !== "off";
      else field.value = value;
    }
  };
  const remember = () => {
    const set = [...new FormData(form)].filter(([name, value]) => value && !["mask", "box"].includes(name));
    for (const name of ["mask", "box"]) if (!form.elements[name].checked) set.push([name, "off"]);
    history.replaceState(null, "", set.length ? "#" + new URLSearchParams(set) : location.pathname);
  };
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const text = wanted.text.trim().toLowerCase();
    const shown = { kept: 0, rejected: 0 };
    for (const card of cards) {
      const fits = ["fate", "source", "task", "reason"].every((name) => !wanted[name] || card[name].includes(wanted[name]));
      const show = fits && (!text || card.text.includes(text));
      // Only what changes is written: the browser then lays out nothing for the others.
      if (card.node.hidden === show) card.node.hidden = !show;
      shown[card.fate] += show;
    }
    for (const row of rows) {
      row.hidden = ["source", "task", "reason"].some((name) => wanted[name] && row.dataset[name] && row.dataset[name] !== wanted[name]);
    }
    gallery.classList.toggle("no-mask", !form.elements.mask.checked);
    gallery.classList.toggle("no-box", !form.elements.box.checked);
    gallery.parentNode.classList.toggle("paired", wanted.view === "paired");
    for (const fate of ["kept", "rejected"]) document.getElementById(`shown-${fate}`).value = shown[fate];
    document.getElementById("shown").value = `${shown.kept + shown.rejected} of ${cards.length}`;
  };
  form.addEventListener("input", () => {
    remember();
    apply();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  recall();
  apply();
})();
