"use strict";
// A cell of the confusion matrix opens its images. All text is inserted as text, never as markup.
const data = document.getElementById("shown");
if (data) {
  const shown = JSON.parse(data.textContent);
  const dialog = document.getElementById("images");
  const place = document.getElementById("images-shots");
  const matrix = document.getElementById("matrix");

  const open = (button) => {
    const shots = shown.cells[button.dataset.cell] || [];
    document.getElementById("images-title").textContent = button.dataset.title;
    document.getElementById("images-note").textContent =
      shots.length === 0 ? "" : button.classList.contains("hit")
        ? "The least confident correct predictions:" : "The most confident mistakes:";
    place.replaceChildren(...shots.map((shot) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = shot.text;
      const source = shown.images[shot.image];
      if (source) {
        const image = document.createElement("img");
        image.src = source;
        image.alt = button.dataset.title;
        figure.append(image);
      }
      figure.append(caption);
      return figure;
    }));
    dialog.showModal();
    document.getElementById("images-title").focus();
  };

  matrix.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (button) open(button);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });

  // The matrix is one Tab stop; arrow keys move to the next cell that has images, Home and End to the ends of the row.
  const buttons = [...matrix.querySelectorAll("button[data-cell]")];
  const visit = (button) => {
    for (const other of buttons) other.tabIndex = other === button ? 0 : -1;
    button.focus();
  };
  buttons.forEach((button, index) => { button.tabIndex = index === 0 ? 0 : -1; });
  const along = (button, down, right) => {
    const rows = [...matrix.tBodies[0].rows];
    let cell = button.parentElement;
    let row = rows.indexOf(cell.parentElement);
    let column = cell.cellIndex;
    for (;;) {
      row += down;
      column += right;
      const next = rows[row] && rows[row].cells[column];
      if (!next) return null;
      const found = next.querySelector("button[data-cell]");
      if (found) return found;
    }
  };
  matrix.addEventListener("keydown", (event) => {
    const button = event.target.closest("button[data-cell]");
    if (!button) return;
    const inRow = [...button.closest("tr").querySelectorAll("button[data-cell]")];
    const next = {
      ArrowDown: () => along(button, 1, 0), ArrowUp: () => along(button, -1, 0),
      ArrowRight: () => along(button, 0, 1), ArrowLeft: () => along(button, 0, -1),
      Home: () => inRow[0], End: () => inRow[inRow.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    const found = next();
    if (found) visit(found);
  });
}
