# How R shows things to a model: figures as PNG only, tables as text that says what it is. Runs once, silently.
options(
  jupyter.plot_mimetypes = "image/png",
  jupyter.rich_display = TRUE,
  repr.plot.width = 8,
  repr.plot.height = 5,
  repr.plot.res = 120,
  repr.matrix.max.rows = 20,
  repr.matrix.max.cols = 20,
  bitmapType = "cairo",
  device = "png",
  width = 110
)
