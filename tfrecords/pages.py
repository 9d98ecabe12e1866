"""Pages for people: one HTML file each, which holds all it shows and asks no network.

    sheet = pages.gallery("Photos", [pages.Card(photos=[...], title="Audi", lines=["train/1.jpg"])])
    text = pages.render("data.html", title="Data set cars", sheet=sheet)
    pages.write("data.html", text)

Templates extend `templates/base.html`, which brings the style sheet and the one script. All text is
escaped. Tables and galleries travel as JSON, and the script shows one page of their rows at a time,
so that 10,000 rows cost the browser no more than 25.
"""

import base64
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfrecords import remote
from tfrecords.errors import UserError, extra

with extra("preprocess"):
    import jinja2
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup, escape
    from PIL import Image

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates")


@dataclass(frozen=True)
class Column:
    """A column of a table; the first one names the row.

    Attributes:
        name: its header.
        number: whether it holds numbers; None among them is shown as a dash and sorted last.
        digits: after the decimal point.
        percent: whether numbers are fractions, to be shown as percentages.
        bar: numbers of the columns whose values are drawn one after the other as this cell's bar.
        hint: what the header says when pointed at.
    """

    name: str
    number: bool = False
    digits: int = 0
    percent: bool = False
    bar: Sequence[int] = ()
    hint: str = ""


@dataclass(frozen=True)
class Box:
    """A box on a photo: (xmin, ymin, xmax, ymax) as fractions, `true` or `predicted`."""

    sides: Sequence[float]
    kind: str = "true"


@dataclass(frozen=True)
class Photo:
    """A picture with its boxes.

    Attributes:
        src: as `jpeg_uri` returns it.
        width, height: of the photo, in pixels or anything of the same proportion.
        alt: what is on it, for those who do not see it.
        boxes: drawn over it.
    """

    src: str
    width: int
    height: int
    alt: str
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Card:
    """One entry of a gallery.

    Attributes:
        photos: one, or several side by side.
        title: the largest text.
        lines: smaller text below, such as paths.
        badges: short words or numbers, such as a split or an IoU.
        facets: the values by which the gallery is filtered, one for each of its facets.
    """

    photos: Sequence[Photo]
    title: str
    lines: Sequence[str] = ()
    badges: Sequence[str] = ()
    facets: Sequence[str] = ()


def render(template: str, folders: Sequence[str] = (), **values: Any) -> str:
    """Returns a page.

    Args:
        template: name of a file in one of the folders.
        folders: of templates, besides that of the base, which is searched last.
        values: for the template. The base takes `title`, `subtitle`, and `made_by`, the command
            that made the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flags"] = _mark_flags
    return environment.get_template(template).render(**values)


def write(path: str, text: str) -> None:
    """Writes a page to a local file, all of it or nothing.

    Raises:
        UserError: it cannot be written.
    """
    if remote.is_remote(path):
        raise UserError(f"the page {path!r} would be remote: name a local file, and copy it there.")
    partial = f"{path}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"the page {path!r} cannot be written: {error.strerror or error}") from None


def table(
    label: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str | float | None]],
    *,
    sort: int | None = None,
    descending: bool = False,
    facets: Sequence[int] = (),
    noun: str = "rows",
    page_size: int = 25,
) -> Markup:
    """Returns a table that is sorted by its headers, searched and paged through.

    Args:
        label: what it is, for those who do not see it.
        columns: headers and kinds.
        rows: one value for each column.
        sort: number of the column that it is sorted by at first; None keeps the order of `rows`.
        descending: whether the largest come first then.
        facets: numbers of the columns by whose values it is filtered.
        noun: what rows are, in the plural: "classes".
        page_size: rows shown at a time.
    """
    described = {
        "columns": [dataclasses.asdict(column) for column in columns],
        "rows": rows,
        "sort": sort,
        "descending": descending,
        "facets": [{"name": columns[number].name, "column": number} for number in facets],
    }
    return _list(label, noun, page_size, described)


def gallery(
    label: str,
    cards: Sequence[Card],
    *,
    facets: Sequence[str] = (),
    noun: str = "photos",
    page_size: int = 24,
) -> Markup:
    """Returns cards with photos that are searched, filtered and paged through.

    Args:
        label: what it is, for those who do not see it.
        cards: in the order in which they are shown.
        facets: what each of the cards' facets is: "split".
        noun: what cards are, in the plural.
        page_size: cards shown at a time.
    """
    described = {
        "cards": [dataclasses.asdict(card) for card in cards],
        "facets": [{"name": name} for name in facets],
    }
    return _list(label, noun, page_size, described)


def _list(label: str, noun: str, page_size: int, described: dict[str, Any]) -> Markup:
    described |= {"label": label, "noun": noun, "size": page_size}
    data = htmlsafe_json_dumps(described, separators=(",", ":"), allow_nan=False)
    return Markup(
        '<div class="list"><script type="application/json">{}</script>'
        "<noscript><p>The script of this page shows its tables and photos.</p></noscript></div>"
    ).format(data)


def _mark_flags(text: str) -> Markup:
    """Returns a sentence with its flags, such as `--image_height`, set as code."""
    # A plain str: `re.sub` joins parts by the class of the text, and Markup would escape them.
    escaped = str(escape(text))
    return Markup(re.sub(r"--\w+(?:[.=]\w+)*", r"<code>\g<0></code>", escaped))


def jpeg_uri(image: np.ndarray | Image.Image, max_side: int, quality: int = 80) -> str:
    """Returns a picture as a `data:` address, made smaller if it is larger than needed.

    Args:
        image: uint8 [height, width, 3], RGB; or a picture.
        max_side: pixels of its longer side, at most.
        quality: of the JPEG, 1 to 100.
    """
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture = picture.convert("RGB")
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
