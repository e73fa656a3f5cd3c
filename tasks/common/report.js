"use strict";
/* Commands can be copied, tables sorted by a click on a heading; without scripts the page reads just as well. */
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre").textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch (error) { getSelection().selectAllChildren(button.parentElement.querySelector("pre")); }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}
for (const head of document.querySelectorAll("th[data-sort]")) {
  function sort() {
    const table = head.closest("table"), body = table.tBodies[0], column = [...head.parentElement.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const value = (row) => { const x = parseFloat(text(row).replace("\u2212", "-").replace(/,/g, "")); return Number.isNaN(x) ? null : x; };
    const numeric = head.dataset.sort === "number";
    const rows = [...body.rows].map((row) => [numeric ? value(row) : text(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // nothing known is last both ways
      return (up ? 1 : -1) * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    rows.forEach(([, row]) => body.append(row));
  }
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
}
