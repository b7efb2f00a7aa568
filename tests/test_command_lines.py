"""The refusals of the table of command lines; `make command-lines` runs it whole."""

import pytest

from modular_diffdiff import loading

from . import command_lines


ROWS = (*command_lines.picture_rows(), *command_lines.option_rows(), *command_lines.batch_rows())
REFUSED = [row for row in ROWS if row.code == 2]


@pytest.fixture(scope="module")
def site():
    with command_lines.table_folder() as site:
        yield site


@pytest.mark.parametrize("row", REFUSED, ids=range(len(REFUSED)))
def test_mistakes_are_one_line_before_a_model_is_loaded(site, monkeypatch, row):
    monkeypatch.setattr(loading, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    assert command_lines.run_row(row, site) is None, row
