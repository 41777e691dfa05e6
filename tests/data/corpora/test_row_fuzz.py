"""Any file of rows is read rightly, counted as rejected, or refused in one line; never silently."""
import published
import pytest
import row_fuzz
from hypothesis import HealthCheck, given, settings

from downscale.data.corpora.cells import REASONS, Rejected
from downscale.data.corpora.columns import parts_of
from downscale.data.corpora.sources import Source, record_from
from downscale.data.corpora.tables import FileRows
from downscale.data.row_files import BadRow
from downscale.factory import source as factory_source
from downscale.runtime.streams import LONGEST_ERROR

ONE = Source('one', 'rows', licence='ours', obtain='make it')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('fuzz')
    published.put(path, 'a.png', 0)
    published.put(path, 'b/c.png', 1)
    return path


def one_line(error):
    return str(error).isprintable() and 0 < len(str(error)) <= LONGEST_ERROR


@pytest.mark.parametrize('form', ['json', 'jsonl', 'csv', 'tsv'])
def test_a_file_has_three_outcomes(folder, form):
    path = folder / f'rows.{form}'
    seen = set()

    @settings(max_examples=300, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(row_fuzz.documents(form))
    def check(document):
        written, data, damaged = document
        path.write_bytes(data)
        try:
            table = FileRows(path)
        except ValueError as error:
            seen.add('refused')
            assert one_line(error)
            with pytest.raises(ValueError):
                factory_source.read(path, folder)
            return
        rows = list(table.part(range(len(table))))
        if form in ('csv', 'tsv'):
            written = [row for row in written if set(map(str, row.values())) - {'None', ''}]
        torn = form == 'jsonl' and len(rows) == len(written) + 1 and isinstance(rows[-1], BadRow)
        assert damaged or len(rows) == len(written) or torn
        for index, row in enumerate(rows):
            try:
                parts = parts_of(row, ONE.ask)
                record = record_from(parts, table.name(index), ONE, folder)
            except Rejected as error:
                seen.add('rejected')
                assert error.reason in REASONS and one_line(error)
                continue
            seen.add('right')
            assert row_fuzz.silent(row, record, parts.aside) == []
        items, skipped = factory_source.read(path, folder)
        assert all(one_line(one.reason) for one in skipped)
        assert len(rows) == 0 or items or skipped
    check()
    assert seen == {'refused', 'rejected', 'right'}
