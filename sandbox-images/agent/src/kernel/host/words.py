# Values as text that says most to a reader who sees no HTML.


# What says no more of a value than that it is there, such as `<pandas.io.formats.style.Styler at 0x7f…>`.
BARE = re.compile(r"<[\w.]+( object)?( at 0x[0-9a-f]+)?>")
RICH = ("text/markdown", "text/latex", "text/html", "application/json")
# What pandas shows in a terminal of eighty columns is broken into pieces; this is none. What the code has set stays.
PANDAS = {"display.width": (80, 1000), "display.max_columns": (20, 40), "display.max_colwidth": (50, 80)}
DTYPES_LIMIT = 1000
TABLE_ROWS = 60
TABLE_COLUMNS = 40


def words(bundle):
    """The text of a bundle."""
    plain = bundle.get("text/plain", "")
    if not BARE.fullmatch(plain.strip()):
        return plain
    drawing = bundle.get("image/svg+xml")
    if drawing:
        return drawing if len(drawing) <= SVG_AS_TEXT else f"a drawing (SVG, {len(drawing)} characters)"
    for kind in RICH:
        value = bundle.get(kind)
        if value and kind == "text/html":
            value = html_text(value)
        elif value and kind == "application/json" and not isinstance(value, str):
            value = json.dumps(value, indent=1, ensure_ascii=False, default=repr)
        if value:
            return value
    return plain


def frame_text(frame):
    """A pandas DataFrame as a compact table, with its shape and types."""
    pandas = sys.modules["pandas"]
    options = [("display.show_dimensions", False)]
    for name, (default, ours) in PANDAS.items():
        if pandas.get_option(name) in (default, 0):
            options.append((name, ours))
    with pandas.option_context(*(part for option in options for part in option)):
        rows, columns = pandas.get_option("display.max_rows"), pandas.get_option("display.max_columns")
        # As a string it is not broken into pieces, and not shortened either.
        text = frame.to_string() if len(frame) <= rows and len(frame.columns) <= columns else repr(frame)
    kinds = {str(dtype) for dtype in frame.dtypes}
    if len(kinds) == 1 and len(frame.columns) > 4:
        dtypes = f"all {kinds.pop()}"
    else:
        dtypes = ", ".join(f"{name}: {dtype}" for name, dtype in zip(frame.columns, frame.dtypes))
    return f"{text}\n[{len(frame)} rows × {len(frame.columns)} columns] {cut(dtypes, DTYPES_LIMIT)}"


def html_text(source):
    """HTML as text: tables as Markdown, blocks on lines of their own, no scripts and styles."""
    from html.parser import HTMLParser

    class Reader(HTMLParser):
        UNSEEN = {"script", "style", "head", "template"}
        BLOCKS = {"p", "div", "br", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "ul", "ol", "hr", "tr", "caption"}

        def __init__(self):
            super().__init__(convert_charrefs=True)
            self.parts = []
            self.unseen = 0
            self.tables = 0
            self.rows = []
            self.cell = None

        def handle_starttag(self, tag, attributes):
            if tag in self.UNSEEN:
                self.unseen += 1
            elif tag == "table":
                self.tables += 1
                if self.tables == 1:
                    self.rows = []
            elif self.tables == 1 and tag == "tr":
                self.rows.append([])
            elif self.tables == 1 and tag in ("td", "th"):
                self.end_cell()
                span = dict(attributes).get("colspan") or "1"
                self.cell = ([], min(int(span), TABLE_COLUMNS) if span.isdecimal() else 1)
            elif tag == "li":
                self.put("\n- ")
            elif tag in self.BLOCKS:
                self.put("\n")
            elif tag == "img":
                self.put(dict(attributes).get("alt") or "")

        def handle_endtag(self, tag):
            if tag in self.UNSEEN:
                self.unseen = max(self.unseen - 1, 0)
            elif tag == "table" and self.tables:
                self.tables -= 1
                if not self.tables:
                    self.end_cell()
                    self.parts.append("\n" + table_text(self.rows) + "\n")
            elif self.tables == 1 and tag in ("td", "th", "tr"):
                self.end_cell()
            elif tag in self.BLOCKS:
                self.put("\n")

        def handle_data(self, data):
            if not self.unseen:
                self.put(data)

        def put(self, text):
            if self.cell is not None:
                self.cell[0].append(text)
            elif not self.tables:
                self.parts.append(text)

        def end_cell(self):
            if self.cell is not None:
                text, span = self.cell
                if not self.rows:
                    self.rows.append([])
                self.rows[-1].append(" ".join("".join(text).split()))
                self.rows[-1].extend([""] * (span - 1))
                self.cell = None

    reader = Reader()
    reader.feed(source[:DISPLAY_LIMIT])
    reader.close()
    if reader.tables:
        reader.end_cell()
        reader.parts.append("\n" + table_text(reader.rows))
    lines = [line.rstrip() for line in "".join(reader.parts).splitlines()]
    return "\n".join(line for at, line in enumerate(lines) if line or (at and lines[at - 1])).strip()


def table_text(rows):
    """Rows of cells as a table of Markdown; what lies in the middle of many is counted."""
    rows = [row for row in rows if row]
    if not rows:
        return ""
    width = min(max(map(len, rows)), TABLE_COLUMNS)

    def line(row):
        cells = [cell.replace("|", "\\|") for cell in row[:width]]
        return "| " + " | ".join(cells + [""] * (width - len(cells))) + " |"

    lines = [line(row) for row in rows]
    if len(lines) > TABLE_ROWS:
        half = TABLE_ROWS // 2
        lines[half:-half] = [line([f"… {len(lines) - 2 * half} rows left out …"])]
    lines.insert(1, "|" + "---|" * width)
    return "\n".join(lines)


def plotly_text(figure):
    """What is drawn in a figure of plotly, trace by trace."""
    layout = figure.layout
    title = getattr(layout.title, "text", None)
    lines = [f"plotly figure{f' {title!r}' if title else ''}, {len(figure.data)} trace(s):"]
    for trace in figure.data[:TRACES]:
        parts = [f"{axis} {extent(trace[axis])}" for axis in ("x", "y", "z", "values", "labels") if axis in trace and trace[axis] is not None]
        name = f" {trace.name!r}" if trace.name else ""
        lines.append(f"  {trace.type}{name}: {'; '.join(parts) or 'no data'}")
    if len(figure.data) > TRACES:
        lines.append(f"  … and {len(figure.data) - TRACES} more")
    lines.append("It is saved as an interactive HTML file. There is no picture of it, since that takes a browser: for one, draw with matplotlib.")
    return cut("\n".join(lines), 4000)


TRACES = 12


def extent(values):
    """How many values there are, and between what they lie."""
    try:
        values = [value for value in list(values) if value is not None]
        if not values:
            return "empty"
        first = values[0]
        if isinstance(first, (list, tuple)) or getattr(first, "ndim", 0):
            return f"{len(values)} rows"
        ends = f"{min(values)} … {max(values)}" if not isinstance(first, str) else f"{first} … {values[-1]}"
        return f"{len(values)} values, {cut(ends, 100)}"
    except Exception:
        return "values"
