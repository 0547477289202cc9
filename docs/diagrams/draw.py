"""Draws the pages' Mermaid diagrams as SVG, for the site and for whoever reads the files.

    npm pack mermaid && tar xzf mermaid-*.tgz package/dist/mermaid.min.js
    .venv/bin/python docs/diagrams/draw.py package/dist/mermaid.min.js      needs Chromium

A picture's name holds a digest of its text, so that the site's build fails on one that is out of date.
"""

import hashlib
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main(script: str) -> None:
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found = [
        (page.stem.lower(), text)
        for page in pages
        for text in re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    for old in HERE.glob("*.svg"):
        old.unlink()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content("<div id=out></div>")
        page.add_script_tag(path=script)
        # labels as SVG text: a picture that is linked to shows no HTML
        page.evaluate(
            "mermaid.initialize({startOnLoad: false, htmlLabels: false, theme: 'neutral',"
            "flowchart: {htmlLabels: false}})"
        )
        for name, text in found:
            svg = page.evaluate("async (text) => (await mermaid.render('drawn', text)).svg", text)
            svg = svg.replace("<style>", "<rect width='100%' height='100%' fill='white'/><style>", 1)
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            (HERE / f"{name}.{digest}.svg").write_text(svg + "\n", encoding="utf-8")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
