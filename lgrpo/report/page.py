"""From numbers and figures to one HTML page. Every text goes through the template engine's escaping; only our own SVG is taken as markup."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from lgrpo.report.plots import DARK, SERIES, Drawn


def exact(x: float | int) -> str:
    """A number that reads back as the same number."""
    return repr(x)


def short(x: float | int) -> str:
    """Four significant digits; whole numbers as they are."""
    return str(x) if isinstance(x, int) else f"{x:.4g}"


def decimals(x: float | int) -> str:
    """Three decimals, so that columns line up; whole numbers as they are."""
    return str(x) if isinstance(x, int) else f"{x:.3f}".replace("-0.000", "0.000")


def setting(value: Any) -> str:
    """A value of a config as its JSON; an empty text and a missing value are told apart."""
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def _engine() -> jinja2.Environment:
    loader = jinja2.PackageLoader("lgrpo.report", "templates")
    engine = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    engine.tests["numeric"] = lambda x: isinstance(x, int | float | dict)
    engine.filters |= {"exact": exact, "short": short, "decimals": decimals, "exp": math.exp}
    engine.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return engine


def render(template: str, **values: Any) -> str:
    """A page from one of lgrpo/report/templates."""
    return _engine().get_template(template).render(light=SERIES, dark=DARK, **values)


def as_markup(drawn: Drawn) -> Mapping[str, Any]:
    """A figure for the template: its SVG is ours and its texts were escaped by matplotlib."""
    return {"figure": drawn.figure, "svg": Markup(drawn.svg)}
