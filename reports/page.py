"""What all pages share: one file without references to others, escaped text, and no script but the page's.

Everything that came from outside goes through the template's escaping, and every character that cannot be seen
becomes a visible escape before that. The page's policy forbids any request and any script but its own.
"""

import base64
import hashlib
from datetime import datetime
from importlib.resources import files

import jinja2
from markupsafe import Markup

from reports.rates import share_text
from reports.run.answers import pieces, visible_text
from reports.run.story import time_text
from reports.run.summary import exercise_label
from repro.record.folder import STAMP


def page_parts() -> dict[str, str]:
    """Return the style and the script of a page, with the script's hash for its policy."""
    script = resource("report.js")
    return {
        "style": Markup(resource("report.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def resource(name: str) -> str:
    """Return a file beside the templates."""
    return (files("reports") / "templates" / name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Return what the templates are rendered in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        finalize=_seen,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "time": time_text,
        "pieces": pieces,
        "share": share_text,
        "floor": exercise_label,
        "date": _date,
        "px": lambda value: f"{value:.1f}",
    }
    return environment


def _date(utc: str) -> str:
    try:
        return datetime.strptime(utc, STAMP).strftime("%d %b %Y %H:%M:%S UTC")
    except ValueError:
        return utc


def _seen(value: object) -> object:
    """Make hidden characters visible in everything that the template prints."""
    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value
