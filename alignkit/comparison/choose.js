"use strict";
const box = document.getElementById("choose");
if (box) {
  box.hidden = false;
  const selects = [...box.querySelectorAll("select")];
  const show = () => {
    const chosen = new Set(selects.map((select) => select.value));
    for (const answer of document.querySelectorAll("[data-method]")) {
      answer.hidden = !chosen.has("") && !chosen.has(answer.dataset.method);
    }
  };
  for (const select of selects) select.addEventListener("change", show);
  show();
}
