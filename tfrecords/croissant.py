"""`croissant.json`: a data set in the words of MLCommons Croissant, so that other tools find it.

It names the shards with their sizes and digests, the splits, the classes, and what each field of a
record means. It follows from the manifest alone. Croissant knows no TFRecords: that a shard holds a
`tf.train.Example` a record is said in words, and its fields are columns.

Source: Croissant format specification 1.0, http://mlcommons.org/croissant/1.0.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from tfrecords import example, manifest
from tfrecords.manifest import Manifest

FILE_NAME = "croissant.json"

_TYPES = {"bytes_list": "sc:Text", "int64_list": "sc:Integer", "float_list": "sc:Float"}

# As the specification gives it; readers warn of any other.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def to_json(info: Manifest) -> str:
    """Returns the text of `croissant.json`; equal manifests give equal text."""
    image = info.image
    values = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": info.name,
        "description": (
            f"Photos of {len(info.class_names)} classes, one object and one box each, as TFRecords"
            f" of tf.train.Example. The photos are {image.encoding.upper()}s of"
            f" {image.height} x {image.width} pixels (height x width, {image.resize})."
        ),
        "distribution": [*_files(info, info.to_json().encode()), _SHARDS],
        "recordSet": [_splits(info), _classes(info), _records()],
    }
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def problems(text: bytes, info: Manifest, manifest_text: bytes) -> Iterator[str]:
    """Yields a sentence for each file that `croissant.json` describes otherwise than the manifest.

    Args:
        text: of `croissant.json`.
        info: the manifest beside it.
        manifest_text: the bytes that it was read from.
    """
    try:
        listed = json.loads(text)["distribution"]
        found = {one["name"]: one for one in listed if one["@type"] == "cr:FileObject"}
    except (ValueError, KeyError, TypeError) as error:
        yield f"not one that this version reads: {error!r}"
        return
    expected = {one["name"]: one for one in _files(info, manifest_text)}
    for name in sorted(found.keys() | expected.keys()):
        ours, theirs = found.get(name), expected.get(name)
        if not ours or not theirs:
            yield f"{name}: {manifest.FILE_NAME} {'names' if theirs else 'does not name'} it"
        elif any(ours.get(key) != theirs[key] for key in ("contentSize", "sha256")):
            yield f"{name}: its size or sha256 is not the one in {manifest.FILE_NAME}"


_SHARDS = {
    "@type": "cr:FileSet",
    "@id": "shards",
    "name": "shards",
    "description": "all shards of all splits",
    "encodingFormat": "application/x-tfrecord",
    "includes": "*.tfrecord",
}


def _files(info: Manifest, manifest_text: bytes) -> Iterator[dict[str, Any]]:
    digest = hashlib.sha256(manifest_text).hexdigest()
    size = len(manifest_text)
    yield _file(manifest.FILE_NAME, "the manifest", "application/json", size, digest)
    for split in filter(info.splits.get, manifest.SPLITS):
        for shard in info.splits[split].shards:
            about = f"{shard.num_examples} records of the {split} split"
            yield _file(shard.file, about, "application/x-tfrecord", shard.bytes, shard.sha256)


def _file(name: str, about: str, encoding: str, size: int, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "description": about,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": encoding,
        "sha256": sha256,
    }


def _splits(info: Manifest) -> dict[str, Any]:
    rows = [
        {"splits/name": name, "splits/num_examples": info.splits[name].num_examples}
        for name in filter(info.splits.get, manifest.SPLITS)
    ]
    fields = [_field("splits/name", "sc:Text"), _field("splits/num_examples", "sc:Integer")]
    return _table("splits", "cr:Split", "splits/name", fields, rows)


def _classes(info: Manifest) -> dict[str, Any]:
    rows = [
        {"classes/label": label, "classes/name": name}
        for label, name in enumerate(info.class_names, start=1)
    ]
    fields = [_field("classes/label", "sc:Integer"), _field("classes/name", "sc:Text")]
    return _table("classes", "sc:Enumeration", "classes/label", fields, rows)


def _table(
    name: str, kind: str, key: str, fields: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "dataType": kind,
        "key": {"@id": key},
        "field": fields,
        "data": rows,
    }


def _records() -> dict[str, Any]:
    split = {
        **_field("records/split", "sc:Text"),
        "description": "the split, from the name of the shard",
        "references": {"field": {"@id": "splits/name"}},
        "source": {
            "fileSet": {"@id": "shards"},
            "extract": {"fileProperty": "filename"},
            "transform": {"regex": f"^({'|'.join(manifest.SPLITS)})-.*$"},
        },
    }
    fields = [split]
    for name, about in example.FIELDS.items():
        field = {
            **_field(f"records/{name}", _TYPES[about.kind]),
            "description": about.about,
            "source": {"fileSet": {"@id": "shards"}, "extract": {"column": name}},
        }
        if name == example.PHOTO:
            field["dataType"] = "sc:ImageObject"
        if name == example.LABEL:
            field["references"] = {"field": {"@id": "classes/label"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": "records",
        "name": "records",
        "description": "one tf.train.Example a photo; each feature holds one value",
        "field": fields,
    }


def _field(identifier: str, kind: str) -> dict[str, Any]:
    name = identifier.partition("/")[2]
    return {"@type": "cr:Field", "@id": identifier, "name": name, "dataType": kind}
