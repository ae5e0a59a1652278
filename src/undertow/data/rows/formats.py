"""Files that are no rows, named by how they begin: what a file is, and how to make rows of it."""

from __future__ import annotations

from undertow.core.errors import UserError

#: Bytes of a file's front that are looked at.
HEAD = 264

_UNPACK = "unpack it first ({}) and give the file inside"
_EXPORT = "export its rows as JSON lines, CSV or Parquet"
_DATA = "give the file with the rows: JSON lines, JSON, CSV, TSV or Parquet"
#: How a file begins, what it is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"BZh", "compressed with bzip2", _UNPACK.format("bunzip2")),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK.format("unxz")),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK.format("unzstd")),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", _UNPACK.format("unlz4")),
    (b"\x1f\x9d", "compressed with compress", _UNPACK.format("uncompress")),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK.format("7z x")),
    (b"Rar!", "a RAR archive", _UNPACK.format("unrar x")),
    (b"PK\x03\x04", "a ZIP archive, as Excel and Word files are", _UNPACK.format("unzip") + ", or export the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "export the table as CSV"),
    (b"\x89PNG", "a picture (PNG)", _DATA),
    (b"\xff\xd8\xff", "a picture (JPEG)", _DATA),
    (b"GIF8", "a picture (GIF)", _DATA),
    (b"II*\x00", "a picture (TIFF)", _DATA),
    (b"MM\x00*", "a picture (TIFF)", _DATA),
    (b"RIFF", "a picture, sound or film (RIFF)", _DATA),
    (b"OggS", "a sound or film (Ogg)", _DATA),
    (b"ID3", "a sound (MP3)", _DATA),
    (b"%PDF", "a PDF document", _EXPORT),
    (b"FEA1", "a Feather file of version 1", "write it again as Parquet, or as Feather of version 2"),
    (b"ORC", "an ORC file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a numpy array", _EXPORT),
    (b"GGUF", "a model (GGUF)", "import it with `undertow base import`, and give data here"),
    (b"\x7fELF", "a program", _DATA),
    (b"\xff\xfe", "text in UTF-16", "convert it: iconv -f utf-16 -t utf-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it: iconv -f utf-16 -t utf-8"),
)
#: Of tables that have a reader of their own where rows are read.
_TABLES = ((b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"\xff\xff\xff\xff", "an Arrow stream"))


def refuse_foreign(name: str, head: bytes, tables: bool = False) -> None:
    """Refuse a file that is something else than text.

    Args:
        name: of the file, for the error.
        head: its first :data:`HEAD` bytes, unpacked if it was gzipped.
        tables: refuse tables too, where only text is read.

    Raises:
        UserError: with what it is, and what to do.
    """
    for start, what, action in _FOREIGN:
        if head.startswith(start):
            raise UserError(f"{name}: {what}; {action}")
    if head[257:262] == b"ustar":
        raise UserError(f"{name}: a tar archive; {_UNPACK.format('tar xf')}")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UserError(f"{name}: a Python pickle, which can run code when it is read; {_EXPORT}")
    for start, what in _TABLES:
        if tables and head.startswith(start):
            raise UserError(
                f"{name}: {what}, and this data set is read from text; take data.name=instructions, or write it as text"
            )
