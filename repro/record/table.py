"""The requests of a run: JSON lines while it runs, a Parquet table afterwards."""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from repro.base.errors import RecordError
from repro.record.events import decode_line
from repro.record.lines import CHANGED, read_lines
from repro.record.requests import RequestRecord

_COLUMNS = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[int]: pa.list_(pa.int64()),
    list[float]: pa.list_(pa.float64()),
    list[str]: pa.list_(pa.string()),
}
SCHEMA = pa.schema([(each.encode_name, _COLUMNS[each.type]) for each in msgspec.structs.fields(RequestRecord)])

_decoder = msgspec.json.Decoder(RequestRecord)


def read_request_lines(path: Path) -> list[RequestRecord]:
    """Return the last record of each request and attempt, in the order of their first line."""
    records: dict[tuple[str, int], RequestRecord] = {}
    for number, line in read_lines(path):
        record = _decode(path, number, line)
        records[record.request, record.attempt] = record
    return list(records.values())


def _decode(path: Path, number: int, line: bytes) -> RequestRecord:
    try:
        return decode_line(line, _decoder)
    except msgspec.DecodeError as error:
        raise RecordError(f"{path}:{number}: no request: {error}. {CHANGED}") from error


def write_table(path: Path, records: Iterable[RequestRecord]) -> None:
    """Write the Parquet table; it appears whole or not at all. Raises OSError."""
    table = pa.Table.from_pylist([msgspec.to_builtins(record) for record in records], schema=SCHEMA)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        pq.write_table(table, unfinished, compression="zstd")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_table(path: Path) -> list[RequestRecord]:
    """Return the records of a Parquet table; columns that it lacks get their defaults."""
    try:
        rows = pq.read_table(path).to_pylist()
        return [msgspec.convert(row, RequestRecord) for row in rows]
    except (pa.ArrowException, msgspec.ValidationError) as error:
        raise RecordError(f"{path}: no table of requests: {error}. {CHANGED}") from error
