"""A bucket in memory behind `carboxtest://`, as a real Beam file system: renames are copies."""

import io

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

OBJECTS: dict[str, bytes] = {}
LOG: list[tuple[str, str]] = []  # what changed, in order: ("put" or "delete", path)


class _Upload(io.BytesIO):
    """An object appears when its upload is closed."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            OBJECTS[self._path] = self.getvalue()
            LOG.append(("put", self._path))
        super().close()


class BucketFileSystem(FileSystem):
    """Beam finds it by its scheme, as it finds those of real buckets."""

    @classmethod
    def scheme(cls):
        return "carboxtest"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        raise BeamIOError("a bucket has no folders")

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path in sorted(OBJECTS):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(OBJECTS[path]), 1_700_000_000.25)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        return _Upload(path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        if path not in OBJECTS:
            raise BeamIOError("open failed", {path: FileNotFoundError(path)})
        return io.BytesIO(OBJECTS[path])

    def copy(self, source_file_names, destination_file_names):
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            if source not in OBJECTS:
                raise BeamIOError("copy failed", {source: FileNotFoundError(source)})
            OBJECTS[destination] = OBJECTS[source]
            LOG.append(("put", destination))

    def rename(self, source_file_names, destination_file_names):
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path):
        return path in OBJECTS

    def size(self, path):
        return len(OBJECTS[path])

    def last_updated(self, path):
        return 1_700_000_000.25

    def checksum(self, path):
        return str(hash(OBJECTS[path]))

    def metadata(self, path):
        return FileMetadata(path, len(OBJECTS[path]), 1_700_000_000.25)

    def delete(self, paths):
        for path in paths:
            if OBJECTS.pop(path, None) is None:
                raise BeamIOError("delete failed", {path: FileNotFoundError(path)})
            LOG.append(("delete", path))


def upload(folder, path: str) -> None:
    """Puts a local folder into the bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            OBJECTS[f"{path}/{file.relative_to(folder)}"] = file.read_bytes()


def under(path: str) -> dict[str, bytes]:
    """The objects under a path, by their relative path."""
    return {
        key.removeprefix(path + "/"): value
        for key, value in sorted(OBJECTS.items())
        if key.startswith(path + "/")
    }
