"""Files that tests of data write."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def write(tmp_path):
    """A function: content, name -> path of a file with it, line ends as they are."""

    def to(content: str | bytes, name: str = "a.csv") -> str:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    return to


@pytest.fixture
def parquet(tmp_path):
    def to(columns: dict, name: str = "a.parquet", **more) -> str:
        pq.write_table(pa.table(columns), tmp_path / name, **more)
        return str(tmp_path / name)

    return to
