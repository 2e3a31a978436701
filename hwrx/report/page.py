"""One page for all that hwrx shows in a browser: self-contained, light and dark, for a phone and for paper."""

from __future__ import annotations

import jinja2

from hwrx.version import __version__

WIDE, NARROW = 7.2, 3.5  # inches, of the figures on a desk and on a phone


def render_template(template: str, **values: object) -> str:
    """Return the page that a template of hwrx/report/templates makes of `values`, all of which it must be given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hwrx.report"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(version=__version__, **values)
