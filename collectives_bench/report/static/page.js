"use strict";
// Colours: the reader's setting first, then the button.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
root.classList.toggle("dark", dark.matches);
dark.addEventListener("change", () => root.classList.toggle("dark", dark.matches));
document.getElementById("theme").addEventListener("click", () => root.classList.toggle("dark"));

// Sort by a column: numbers where cells carry them, text otherwise; empty cells stay below.
function sort(table, column, down) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const empty = (row) => ["", "-"].includes(row.cells[column].textContent);
  const order = (a, b) => {
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    const x = key(a), y = key(b);
    const sign = typeof x === "number" && typeof y === "number"
      ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
    return down ? -sign : sign;
  };
  body.append(...[...body.rows].sort(order));
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    sort(table, column, down);
  }));
  const search = table.closest("details").querySelector("input");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
