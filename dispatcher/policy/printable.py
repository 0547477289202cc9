"""Somebody else's text, safe to show. Pure."""


def printable(text: str) -> str:
    """Return the text with its control characters spelt out: it is one line, and a terminal obeys none of it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
