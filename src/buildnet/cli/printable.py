"""Text from outside is shown, never obeyed: no control character reaches a terminal as itself."""

from __future__ import annotations

import json


def shown(text: str) -> str:
    """The text with everything that is not a visible character or a blank written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown_json(value: object) -> str:
    """One line of JSON whose strings hold no such character either; it is read back as the same value."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
