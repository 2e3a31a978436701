"""One page for all that hwrx shows in a browser: self-contained, light and dark, for a phone and for paper."""

from __future__ import annotations

from typing import Any

import jinja2

from hwrx.version import __version__


def render_template(template: str, **values: Any) -> str:
    """Return the page that a template of hwrx/report/templates makes of `values`, all of which it must be given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hwrx.report"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(version=__version__, **values)
