(() => {
  const table = document.querySelector("table.all");
  const place = document.getElementById("controls");
  if (!table || !place) return;
  const body = table.tBodies[0];
  const size = 100;
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  let found = rows, page = 0, column = -1, down = false;
  const make = (tag, text, more) => Object.assign(document.createElement(tag), { textContent: text }, more);
  const label = make("label", "Show modules with ");
  const input = make("input", "", { type: "search", placeholder: "for example q_proj, or float" });
  label.append(input);
  const told = make("span", "", { role: "status" });
  const back = make("button", "Previous", { type: "button" });
  const next = make("button", "Next", { type: "button" });
  place.append(label, back, told, next);
  place.hidden = false;
  const show = () => {
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const part = found.slice(page * size, (page + 1) * size);
    body.replaceChildren(...part.map((each) => each.row));
    const first = found.length ? page * size + 1 : 0;
    told.textContent = `${first} to ${page * size + part.length} of ${found.length}`;
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  };
  const value = (each) => {
    const text = each.row.cells[column].textContent;
    const number = Number(text.replaceAll(",", ""));
    return text === "" ? null : Number.isNaN(number) ? text : number;
  };
  const compare = (one, other) => {
    if (one === null || other === null) return (one === null) - (other === null);
    const order = typeof one === "number" && typeof other === "number"
      ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
    return down ? -order : order;
  };
  const choose = () => {
    const wanted = input.value.toLowerCase();
    found = rows.filter((each) => each.text.includes(wanted));
    if (column >= 0) {
      found = found.map((each) => [value(each), each])
        .sort((one, other) => compare(one[0], other[0])).map((pair) => pair[1]);
    }
    page = 0;
    show();
  };
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = make("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      down = column === index && !down;
      column = index;
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      choose();
    });
  });
  input.addEventListener("input", choose);
  back.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  const open = () => {
    if (location.hash === "#modules") place.parentElement.open = true;
  };
  addEventListener("hashchange", open);
  open();
  show();
})();
