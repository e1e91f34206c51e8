"""Whether each link leads somewhere: links.py, after `cargo doc`

In the Markdown files that people read where they lie: to a file that is there, and to a heading of it. Links to items,
which stand in texts for rustdoc, are rustdoc's to check. In the pages that rustdoc made: to a page, and to a place on it.
"""

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

FOREIGN = ("https://", "http://", "mailto:", "data:")
bad = []


def headings(text):
    """As GitHub names them."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for heading in re.findall(r"^#+ +(.*)$", text, flags=re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().replace("`", "")
        yield re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


for path in map(Path, subprocess.check_output(["git", "ls-files", "*.md"], text=True).split()):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.M)
    for target in targets:
        file, _, place = target.partition("#")
        is_item = "::" in target or re.fullmatch(r"[A-Za-z_]+", file)
        if target.startswith(FOREIGN) or is_item:
            continue
        to = path if not file else path.parent / file
        if not to.exists() or (place and to.suffix == ".md" and place not in headings(to.read_text())):
            bad.append(f"{path}: {target}")

pages = Path("target/doc")
places = {}


def places_of(page):
    if page not in places:
        ids = re.findall(r'\bid="([^"]*)"', page.read_text())
        places[page] = {unquote(html.unescape(place)) for place in ids}
    return places[page]


for name in ["futureproof", "futureproof_nats"]:
    for page in pages.glob(f"{name}/**/*.html"):
        for target in re.findall(r'<a\b[^>]*\bhref="([^"]*)"', page.read_text()):
            target = unquote(html.unescape(target))
            file, _, place = target.partition("#")
            to = (page.parent / file) if file else page
            to = to / "index.html" if to.is_dir() else to
            # What other crates say of the traits that all types have is theirs; so are pages without a dot.
            if target.startswith(FOREIGN) or "/src/" in str(to.resolve()) or re.fullmatch(r"[\w:()]+", file):
                continue
            if not to.exists() or (place and not re.fullmatch(r"[0-9-]+", place) and place not in places_of(to)):
                bad.append(f"{page.relative_to(pages)}: {target}")

print("\n".join(sorted(set(bad))) or "each link leads somewhere")
sys.exit(bool(bad))
