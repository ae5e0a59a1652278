"""Rows of Parquet and Arrow files; text columns are text, whatever it looks like."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import IO, Any

from undertow.core.errors import UserError
from undertow.data.rows.record import Record

#: Rows taken at a time.
_BATCH = 4096


def is_parquet(head: bytes) -> bool:
    """Whether a file that begins so is a Parquet file."""
    return head[:4] == b"PAR1"


def is_arrow(head: bytes) -> bool:
    """Whether a file that begins so is an Arrow file, or an Arrow stream, as ``save_to_disk`` writes it."""
    return head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff"


def parquet_rows(name: str, raw: IO[bytes]) -> Iterator[Record]:
    """Yield the rows of a Parquet file.

    Raises:
        UserError: pyarrow is not installed, or the file is damaged.
    """
    return _rows(name, "Parquet", lambda: _module(name, "pyarrow.parquet").ParquetFile(raw).iter_batches(batch_size=_BATCH))


def arrow_rows(name: str, raw: IO[bytes]) -> Iterator[Record]:
    """Yield the rows of an Arrow file or stream.

    Raises:
        UserError: as :func:`parquet_rows`.
    """

    def batches() -> Iterator[Any]:
        ipc = _module(name, "pyarrow.ipc")
        head = raw.read(6)
        raw.seek(0)
        if head == b"ARROW1":
            file = ipc.open_file(raw)
            return (file.get_batch(i) for i in range(file.num_record_batches))
        return iter(ipc.open_stream(raw))

    return _rows(name, "Arrow", batches)


def _rows(name: str, kind: str, batches: Any) -> Iterator[Record]:
    arrow = _module(name, "pyarrow")
    number = 0
    try:
        for batch in batches():
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{name} row {number}", row)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{name}: damaged {kind} file ({' '.join(str(error).split())[:120]}); fetch it again") from error
    if not number:
        raise UserError(f"{name}: an empty table; give a file with data in it")


def _module(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{name}: needs the package pyarrow: pip install -e '.[tables]' in the clone") from error
