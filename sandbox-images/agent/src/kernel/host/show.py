# What the code shows: bundles by MIME type, and figures.


class Display:
    """What the code shows: bundles by MIME type, and figures."""

    def __init__(self, talk, output):
        self.talk = talk
        self.output = output
        self.begin("")

        # Functions, since pyplot gives one a signature, and plotly takes the other for a method.
        def show(*_arguments, **_keywords):
            self.show_figures()

        def show_plotly(figure, *_arguments, **_keywords):
            self.show_plotly(figure)

        def adopt_pyplot(module):
            module.show = show

        def adopt_plotly(module):
            # Its own would look for a browser, or send four megabytes of script.
            module.BaseFigure.show = module.BaseFigure._ipython_display_ = show_plotly

        sys.meta_path.insert(0, ImportWatch({"matplotlib.pyplot": adopt_pyplot, "plotly.basedatatypes": adopt_plotly}))

    def begin(self, figures):
        """A new run, whose images are saved as `figures` with a number and an ending."""
        self.figures = figures
        self.shown = 0
        self.images = 0

    def publish(self, bundle):
        """Shows a bundle: as it is, or as its text where nothing else is in it or too much was shown."""
        image = self.save_image(bundle)
        texts = {kind: value for kind, value in bundle.items() if kind not in IMAGES or self.is_short(kind, value)}
        rich = image or any(kind != "text/plain" for kind in texts)
        if texts:
            texts["text/plain"] = words(bundle)
        if not rich or self.shown >= DISPLAYS or not self.show(texts, image):
            print(texts.get("text/plain", ""))

    @staticmethod
    def is_short(kind, value):
        """A drawing that is text, and short enough to be read as such."""
        return kind == "image/svg+xml" and isinstance(value, str) and len(value) <= SVG_AS_TEXT

    def show(self, texts, image):
        self.shown += 1
        data = {}
        for kind, value in texts.items():
            if not isinstance(value, str):
                value = json.dumps(value, default=repr)
            if len(value) <= DISPLAY_LIMIT or kind == "text/plain":
                data[kind] = cut(value, DISPLAY_LIMIT)
        # What was printed before stands before it.
        self.output.flush()
        return self.talk.show({"data": data, "image": image})

    def save_image(self, bundle):
        """Saves the first image of a bundle; the agent makes what is sent of it, from the file."""
        for kind, ending in IMAGES.items():
            if kind in bundle:
                image = bundle[kind]
                if isinstance(image, str):
                    image = image.encode("utf-8", "backslashreplace") if ending == "svg" else base64.b64decode(image)
                return self.save(image, ending)
        return None

    def save(self, content, ending):
        """Saves what is shown; beyond the bound nothing is."""
        if self.images >= FIGURES:
            return None
        self.images += 1
        path = f"{self.figures}-{self.images}.{ending}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        return {"number": self.images, "ending": ending}

    def show_figures(self):
        """Sends pyplot's open figures, once, and closes them."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        for number in pyplot.get_fignums():
            self.show_figure(pyplot.figure(number))

    def show_figure(self, figure):
        try:
            if figure.axes or figure.texts or figure.images:
                self.publish({"image/png": draw(figure), "text/plain": repr(figure)})
        finally:
            sys.modules["matplotlib.pyplot"].close(figure)

    def show_plotly(self, figure):
        """A figure of plotly as a page of its own, and in words."""
        page = sys.modules["plotly.io"].to_html(figure, include_plotlyjs=True, full_html=True)
        text = {"text/plain": plotly_text(figure)}
        saved = self.save(page.encode(), "html")
        if saved is None or self.shown >= DISPLAYS or not self.show(text, saved):
            print(text["text/plain"])


def draw(figure):
    """A figure as the bytes of a PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=figure.dpi, bbox_inches="tight")
    return png.getvalue()


class ImportWatch(importlib.abc.MetaPathFinder):
    """Adopts modules as soon as they are there, so that `plt.show()` and the like have a meaning here."""

    def __init__(self, adopters):
        self.adopters = adopters

    def find_spec(self, name, _path, _target=None):
        adopt = self.adopters.pop(name, None)
        if adopt is None:
            return None
        if not self.adopters:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_adopt(module):
            execute(module)
            adopt(module)

        spec.loader.exec_module = execute_and_adopt
        return spec
