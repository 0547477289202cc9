"""The site: `make docs` builds it into build/docs, without the network, and any warning is a fault."""

import hashlib
import re
from pathlib import Path

from pygments.lexers.special import TextLexer

from dispatcher import __version__

project = "dispatcher"
release = version = __version__
html_title = f"dispatcher {__version__}"
project_copyright = "the dispatcher's authors"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["reference.py"]
html_theme = "furo"
html_static_path: list[str] = []
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
html_show_sphinx = False
nitpicky = True

DIAGRAMS = Path(__file__).parent / "diagrams"
_MERMAID = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def _draw(app, docname, source):  # type: ignore[no-untyped-def]  # Sphinx's own event
    """Mermaid is drawn by the repository's host, and here by a picture that was drawn of the same text."""

    def picture(match: re.Match[str]) -> str:
        digest = hashlib.sha256(match[1].encode()).hexdigest()[:12]
        (drawn,) = DIAGRAMS.glob(f"*.{digest}.svg")  # none: run docs/diagrams/draw.py
        up = "../" * docname.count("/")
        return f"![diagram]({up}diagrams/{drawn.name})"

    source[0] = _MERMAID.sub(picture, source[0])


def setup(app):  # type: ignore[no-untyped-def]  # as above
    app.connect("source-read", _draw)
    app.add_lexer("promql", TextLexer)  # Pygments knows no names with colons, which recording rules have
