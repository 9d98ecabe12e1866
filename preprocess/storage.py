"""Storage: folders, zips and buckets, behind one interface for reading and one for writing.

Reading: `open_source(path)` gives a `Source`, which lists its files as tables and reads one of
them. Photos are read by the `Entry` that one listing gave; reading lists nothing.

Writing: functions over paths. Local paths are written with care for power cuts, anything with
`scheme://` goes through Beam's file systems, where a file appears when it is closed and a rename
may be a copy.
"""

import contextlib
import errno
import functools
import importlib.util
import itertools
import os
import re
import shutil
import stat
import struct
import threading
import uuid
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from tfrecords.errors import UserError
from tfrecords.remote import is_remote

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PHOTO_BYTES = 128 << 20  # a file larger than this is no photo; it is refused unread

# Left behind by file managers and version control: never part of a data set.
_JUNK = re.compile(r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)")

# A hidden folder where class folders are: it may be a class, and must not be skipped silently.
_HIDDEN_CLASS = re.compile(r"^(?!(.*/)?__MACOSX/).*?(^|/)(train|test)/\.[^/]+/")
_HIDDEN = "hidden: its name begins with a dot. Rename it if it belongs to the data set"

# Whether a zip member's name needs a closer check: most do not, and there may be millions.
_UNUSUAL = re.compile(r"^/|^[A-Za-z]:|/$|(^|/)[._Td]|\\|[^\x20-\x7e]")

_ZIP_HEADER, _ZIP_DESCRIPTOR = 30, 8  # bytes before a member's name, and of checksums behind it
_ZIP_EXTRA = 64  # bytes of extra fields, as most zips have them

# What Beam's file systems import when they are first used, and the extra that brings it.
_EXTRAS = {
    "gs": ("google.cloud.storage", "gcp"),
    "s3": ("boto3", "aws"),
    "azfs": ("azure.storage.blob", "azure"),
    "hdfs": ("hdfs", "hadoop"),
}

# Modules whose errors are those of a bucket's client, and not of the code that uses it.
_CLIENTS = ("apache_beam", "azure", "boto3", "botocore", "google", "hdfs", "urllib3")

_File = tuple[str, int, int, int, int, str]  # a row of `tables.FILES`


class Entry(NamedTuple):
    """One file of a source; the fields are those of `tables.FILES`."""

    path: str
    size: int
    offset: int
    stored: int


class Source(Protocol):
    """A place that holds a data set."""

    def scan(self) -> "Iterator[pa.Table]":
        """Lists every file, in tables (`tables.FILES`), in any order.

        Raises:
            UserError: the source cannot be listed.
        """

    def read(self, entry: Entry) -> bytes:
        """Reads one file; safe from several threads.

        Raises:
            ValueError: the file is damaged where it is stored (zip).
            OSError: it cannot be read.
        """


@functools.lru_cache(maxsize=2)
def opened(path: str, follow_links: bool, run: str) -> "Source":
    """Opens a source once for each run of the pipeline in a process; for workers."""
    return open_source(path, follow_links)


def open_source(path: str, follow_links: bool = False) -> Source:
    """Opens a folder, a zip, or either behind `scheme://`.

    Args:
        path: of the source.
        follow_links: also where they lead out of a folder.

    Raises:
        UserError: there is nothing there, or it is neither.
    """
    if is_remote(path):
        require_file_system(path)
        return Zip(path) if path.lower().endswith(".zip") else Bucket(path)
    if os.path.isdir(path):
        return Folder(path, follow_links)
    if not os.path.exists(path):
        raise UserError(
            f"--input={path} does not exist. Name a folder or a zip of a class-folder data set."
        )
    if not zipfile.is_zipfile(path):
        packed = re.search(r"(?i)\.(tgz|tar(\.\w+)?|7z|rar|gz|bz2|xz)$", path)
        advice = (
            "Unpack it and name the folder, or pack it as a zip."
            if packed
            else "If it is a download, it may be cut off: load it again."
        )
        raise UserError(f"--input={path} is neither a folder nor a whole zip file. {advice}")
    return Zip(path)


class Folder:
    """A local folder."""

    def __init__(self, root: str, follow_links: bool = False):
        self._root = os.path.realpath(root)
        self._follow_links = follow_links

    def scan(self) -> "Iterator[pa.Table]":
        """Walks the folder, the top first; links are refused where they lead out of it.

        A folder is listed once: under its own name, or the first of the links to it.
        """
        return _tables(self._walk())

    def _walk(self) -> Iterator[_File]:
        pending, seen = deque([("", self._root)]), set()
        links: list[tuple[str, str]] = []
        while pending or links:
            links.sort(reverse=True)
            folder, place = pending.popleft() if pending else links.pop()
            if place in seen:
                continue
            seen.add(place)
            for entry in _scan(os.path.join(self._root, folder)):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_text(path):
                    yield path.encode(errors="backslashreplace").decode(), 0, 0, 0, 0, "not UTF-8"
                    continue
                if _JUNK.search(path):
                    if entry.is_dir() and _HIDDEN_CLASS.search(path + "/"):
                        yield path, 0, 0, 0, 0, _HIDDEN
                    continue
                problem, target = "", f"{place}/{entry.name}"
                if entry.is_symlink():
                    target = os.path.realpath(entry.path)
                    inside = f"{target}{os.sep}".startswith(self._root + os.sep)
                    if not (inside or self._follow_links):
                        problem = f"a symbolic link that leads out of the data set, to {target}"
                if problem:
                    yield path, 0, 0, 0, 0, problem
                elif entry.is_dir():
                    (links if entry.is_symlink() else pending).append((path, target))
                elif entry.is_file():
                    info = entry.stat()
                    yield path, info.st_size, 0, info.st_size, info.st_mtime_ns, ""

    def read(self, entry: Entry) -> bytes:
        """Reads a whole file."""
        with open(os.path.join(self._root, entry.path), "rb", buffering=0) as file:
            return file.read()


class Zip:
    """A zip file, local or remote, stored or deflated.

    The driver reads the directory once, with `zipfile`. Workers read members by their offset:
    they need no directory (gigabytes at millions of members) and no lock.
    """

    def __init__(self, path: str):
        self._read_at = _ranges(path)
        self._path = path

    def scan(self) -> "Iterator[pa.Table]":
        """Lists the members; those whose paths lead out of the zip are refused."""
        return _tables(self._members())

    def _members(self) -> Iterator[_File]:
        try:
            with open_read(self._path) as file, zipfile.ZipFile(file) as archive:
                members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UserError(f"{self._path} is not a whole zip file: {error}.") from None
        for path, info in members.items():
            problem = ""
            if _UNUSUAL.search(path):
                path = _member_path(info)
                problem = _why_unsafe(path)
                if path.endswith("/"):
                    continue
                if not problem and _JUNK.search(path):
                    if not _HIDDEN_CLASS.search(path):
                        continue
                    problem = _HIDDEN
            if stat.S_ISLNK(info.external_attr >> 16):
                problem = "a symbolic link"
            yield path, info.file_size, info.header_offset, info.compress_size, info.CRC, problem

    def read(self, entry: Entry) -> bytes:
        """Reads and inflates one member, never more than its declared size."""
        if entry.stored > 2 * entry.size + 1024:
            raise ValueError(
                f"the zip's directory gives {entry.stored} bytes to a member of {entry.size}"
            )
        # A guess at where the data ends: the exact lengths are in the header.
        guess = _ZIP_HEADER + len(entry.path) + _ZIP_EXTRA + entry.stored + _ZIP_DESCRIPTOR
        block = self._read_at(entry.offset, guess)
        if len(block) < _ZIP_HEADER or block[:4] != b"PK\x03\x04":
            raise ValueError("the zip is damaged: no member where its directory says")
        flags, method = struct.unpack_from("<HH", block, 6)
        crc, _, _, name_length, extra_length = struct.unpack_from("<IIIHH", block, 14)
        start = _ZIP_HEADER + name_length + extra_length
        end = start + entry.stored
        if len(block) < end + _ZIP_DESCRIPTOR:
            more = end + _ZIP_DESCRIPTOR - len(block)
            block += self._read_at(entry.offset + len(block), more)
        data, descriptor = block[start:end], block[end : end + _ZIP_DESCRIPTOR]
        if flags & 1:
            raise ValueError("the zip member is encrypted")
        if method == zipfile.ZIP_DEFLATED:
            data = _inflate(data, entry.size)
        elif method != zipfile.ZIP_STORED:
            raise ValueError(f"the zip member is compressed by method {method}; deflate is read")
        if len(data) != entry.size:
            raise ValueError(
                f"the zip member has {len(data)} bytes, its directory says {entry.size}"
            )
        # With flag 8 the checksum follows the data, mostly after a signature.
        allowed = struct.unpack("<II", descriptor) if flags & 8 and len(descriptor) == 8 else ()
        if zlib.crc32(data) not in (crc, *allowed):
            raise ValueError("the zip member fails its checksum")
        return data


class Bucket:
    """Everything under a `scheme://` path, through Beam's file systems."""

    def __init__(self, root: str):
        self._root = root.rstrip("/")

    def scan(self) -> "Iterator[pa.Table]":
        """Lists every object under the path."""
        return _tables(self._objects())

    def _objects(self) -> Iterator[_File]:
        number = 0
        for info in _match(self._root + "/**"):
            path = info.path[len(self._root) + 1 :]
            if not path or path.endswith("/"):
                continue
            problem = _HIDDEN if _HIDDEN_CLASS.search(path) else ""
            if _JUNK.search(path) and not problem:
                continue
            size, stamp = info.size_in_bytes, int((info.last_updated_in_seconds or 0) * 1000)
            yield path, size, 0, size, stamp, problem
            number += 1
        if not number:
            raise UserError(
                f"--input={self._root}: nothing is there, or it may not be listed."
                " Check the path and your credentials."
            )

    def read(self, entry: Entry) -> bytes:
        """Reads a whole object."""
        return read(f"{self._root}/{entry.path}")


def require_file_system(path: str) -> None:
    """Checks that there is a file system for a `scheme://` path.

    Raises:
        UserError: there is none; the message says what to install.
    """
    scheme = path.split("://")[0]
    package, extra = _EXTRAS.get(scheme, ("", ""))
    if package and not _is_installed(package):
        raise UserError(
            f"{scheme}:// needs {package}, which is not installed:"
            f" pip install 'apache-beam[{extra}]'"
        )
    beam, _ = _file_systems()
    try:
        beam.get_filesystem(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"{path}: {error}") from None


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def open_read(path: str) -> Iterator[BinaryIO]:
    """Opens a file for reading.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read; this may come up as long as the block runs.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
        return
    beam, compression = _file_systems()
    with _as_os_error(path), beam.open(path, compression_type=compression) as file:
        yield file


@contextlib.contextmanager
def create(path: str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Creates a file; it is on the disk for good when the block ends, unless `sync` is False."""
    if not is_remote(path):
        with open(path, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        return
    beam, compression = _file_systems()
    with _as_os_error(path), beam.create(path, compression_type=compression) as file:
        yield file
        if path.startswith("s3://") and not file.tell():
            # S3 refuses an upload without parts, and Beam sends none of an empty file.
            file.raw._uploader._write_to_s3(b"")


def write(path: str, data: bytes, *, sync: bool = True) -> None:
    """Writes a file that is either whole or not there."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with create(partial, sync=sync) as file:
            file.write(data)
        rename(partial, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            delete(partial)
        raise


def read(path: str) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
    """
    with open_read(path) as file:
        return file.read()


def rename(source: str, destination: str) -> None:
    """Renames a file over whatever was there."""
    if not is_remote(source):
        os.replace(source, destination)
        return
    beam, _ = _file_systems()
    with _as_os_error(source):
        beam.rename([source], [destination])


def make_folder(path: str) -> None:
    """Makes a folder and those above it; buckets need none."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)
        return
    beam, _ = _file_systems()
    with contextlib.suppress(OSError):  # it is there already
        beam.mkdirs(path)


def sizes(folder: str) -> dict[str, int]:
    """Returns the size of each file under a folder, by its path relative to it."""
    if is_remote(folder):
        prefix = folder.rstrip("/") + "/"
        return {info.path[len(prefix) :]: info.size_in_bytes for info in _match(prefix + "**")}
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            # A worker may rename its file between the walk and this call.
            with contextlib.suppress(FileNotFoundError):
                found[os.path.relpath(path, folder)] = os.path.getsize(path)
    return found


def delete(path: str) -> None:
    """Deletes a file or a whole folder, if it is there."""
    if is_remote(path):
        beam, _ = _file_systems()
        doomed = [f"{path}/{name}" for name in sizes(path)]
        with _as_os_error(path):
            if beam.exists(path):
                doomed.append(path)
            if doomed:
                beam.delete(doomed)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _scan(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}.") from None


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tables(files: Iterator[_File]) -> "Iterator[pa.Table]":
    import pyarrow as pa  # reading photos does not need it

    from preprocess import tables

    while some := list(itertools.islice(files, tables.ROWS_AT_MOST)):
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*some, strict=True), tables.FILES, strict=True)
        ]
        yield pa.Table.from_arrays(columns, schema=tables.FILES)


def _member_path(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:
        # The zip says "code page 437"; most tools that say so write UTF-8.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _why_unsafe(path: str) -> str:
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "an absolute path"
    if ".." in path.split("/"):
        return "a path that leads out of the data set"
    return ""


def _inflate(data: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than declared reveals a member whose size is wrong.
        return inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the zip member cannot be inflated: {error}") from None


def _ranges(path: str) -> Any:
    """Returns a function (offset, length) -> bytes over a file, safe from several threads."""
    if not is_remote(path):
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - as long as the function lives
        return lambda offset, length: os.pread(file.fileno(), length, offset)
    handles = threading.local()
    beam, compression = _file_systems()

    def read_at(offset: int, length: int) -> bytes:
        with _as_os_error(path):
            if not hasattr(handles, "file"):
                handles.file = beam.open(path, compression_type=compression)
            handles.file.seek(offset)
            return handles.file.read(length)

    return read_at


def _file_systems() -> tuple[Any, str]:
    # Imported here: local jobs' workers and tests of the parsers need no Beam.
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    return FileSystems, CompressionTypes.UNCOMPRESSED


def _match(pattern: str) -> list[Any]:
    beam, _ = _file_systems()
    with _as_os_error(pattern):
        return beam.match([pattern])[0].metadata_list


@contextlib.contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Turns what a bucket's client raises into an OSError that names the cause.

    Beam's file systems wrap some errors in BeamIOError. Others come as the client raises them, and
    those of Google's are no OSErrors.
    """
    from apache_beam.io.filesystem import BeamIOError

    try:
        yield
    except Exception as error:
        cause: object = error
        while isinstance(cause, BeamIOError):
            cause = next(filter(None, (cause.exception_details or {}).values()), str(cause))
        is_of_client = type(error).__module__.startswith(_CLIENTS)
        if cause is error and (isinstance(error, OSError) or not is_of_client):
            raise
        # Some operations give the status of the answer alone.
        status = cause if isinstance(cause, int) else getattr(cause, "code", None)
        is_missing = status == 404 or isinstance(cause, FileNotFoundError)
        text = str(getattr(cause, "message", cause))
        if cause is status:
            text = f"the server answered with status {status}"
        raise OSError(errno.ENOENT if is_missing else errno.EIO, text, path) from error
