//! Results that are more than text.

use crate::case::{Group, python};

pub(crate) fn group() -> Group {
    Group {
        name: "rich",
        cases: vec![
            python("a frame has shape and types", "import numpy as np, pandas as pd\ndf = pd.DataFrame({'city': ['Bonn', 'Köln'], 'n': [1, 2], 'share': [0.25, 0.75]})\ndf")
                .says("   city  n  share\n0  Bonn  1   0.25\n1  Köln  2   0.75\n[2 rows × 3 columns] city: ")
                .says("n: int64, share: float64"),
            python("a frame that is displayed", "display(df.head(1))").says("display:\n").says("[1 rows × 3 columns]"),
            python("a long frame shows both ends", "pd.DataFrame({'v': range(100_000)})").says("[100000 rows × 1 columns] v: int64").says("99999").never("50000"),
            python("a wide frame is not broken into pieces", "pd.DataFrame(np.zeros((2, 30))).add_prefix('column_')").says("[2 rows × 30 columns]").never("\\\n"),
            python("a series", "df['n']").says("Name: n, dtype: int64"),
            python("an array", "np.arange(6).reshape(2, 3)").gives("array([[0, 1, 2],\n       [3, 4, 5]])"),
            python("HTML tables are Markdown", "from IPython.display import HTML, JSON, Latex, Markdown, SVG\nHTML('<h2>Sales</h2><table><tr><th>month</th><th>n</th></tr><tr><td>May</td><td>1|2</td></tr></table><p>over</p><script>alert(1)</script>')")
                .says("Sales\n\n| month | n |\n|---|---|\n| May | 1\\|2 |\n\nover")
                .never("alert"),
            python("Markdown stays", "display(Markdown('**bold** text'))").says("**bold** text"),
            python("formulas are LaTeX", "Latex('$x^2$')").says("$x^2$"),
            python("JSON is JSON", "JSON({'a': [1, 2]})").says("\"a\": ["),
            python("symbols", "import sympy\nsympy.symbols('x') ** 2 + 1").gives("x**2 + 1"),
            python("a small drawing is text and file", "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><circle r=\"4\"/></svg>')")
                .says("<circle r=\"4\"/>")
                .says(".svg"),
            python("a large drawing is a file", "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\">' + '<circle r=\"4\"/>' * 1000 + '</svg>')")
                .says("a drawing (SVG, ")
                .never("<circle"),
            python("a figure", "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);").shows(1).says("image 1: saved as /mnt/data/.greenroom/figures/"),
            python("figures are closed", "plt.get_fignums()").gives("[]").shows(0),
            python("show ends a figure", "plt.plot([1]); plt.show()\nplt.plot([2]); plt.show()").shows(2).never("result:"),
            python("a figure before an exception is shown", "plt.plot([1])\n1 / 0").ends("error").shows(1),
            python("at most four are sent", "for n in range(6):\n    plt.figure(); plt.plot([n])").shows(4).says("2 more image(s) are not shown"),
            python("a large figure is made smaller", "plt.figure(figsize=(40, 5)); plt.plot([1, 2]);").shows(1),
            python("letters in figures", "plt.title('größer Ελληνικά Кириллица 東京'); plt.plot([1]);").shows(1).never("missing from"),
            python("a picture", "from PIL import Image\nImage.new('RGB', (30, 20), 'red')").shows(1).says(".png"),
            python("seaborn", "import seaborn as sns\nsns.barplot(x=['a', 'b'], y=[1, 2]);").shows(1),
            python("plotly says what is drawn and where it is", "import plotly.express as px\nfig = px.line(x=[1, 2, 3], y=[4, 1, 5], title='trend')\nfig.show()")
                .says("plotly figure 'trend', 1 trace(s)")
                .says("scatter")
                .says("3 values, 1 … 5")
                .says(".html")
                .shows(0),
            python("plotly as a result", "fig").says("plotly figure 'trend'").says(".html"),
            python("plotly has no browser", "fig.write_image('fig.png')").ends("error").says("there is no browser here"),
            python("polars says its types", "import polars as pl\npl.DataFrame({'a': [1]})").says("shape: (1, 1)").says("i64"),
            python("a long value is cut in the middle", "'a' * 200_000 + 'z'").says("left out").says("az'"),
            python("a nested value is laid out", "{'k%d' % n: list(range(20)) for n in range(3)}").says("{'k0': [0,"),
        ],
    }
}
