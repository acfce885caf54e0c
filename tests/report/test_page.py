"""A page is one file that needs nothing, wholly written or not at all, in which text stays text."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from markupsafe import Markup
from reports import HOSTILE, read
from tool_runs import assert_refused, run_tool

from repvgg_mm import UserError
from repvgg_mm.files.atomic import check_output_file
from repvgg_mm.report.page import Chart, Gallery, Page, Section, Table, Verdict, render, write_page
from repvgg_mm.report.pictures import ImageComparison, Picture


@pytest.mark.parametrize('name, message', [
    ('report.pth', r'--report names a file in \.html, \.htm, and report\.pth is none'),
    ('/proc/report.html', r'/proc/report\.html could not be written .*Choose a folder')])
def test_where_no_report_can_be_written(name, message):
    with pytest.raises(UserError, match=message):
        check_output_file('--report', Path(name), '.html', '.htm')


def test_tools_check_the_report_before_the_work(tmp_path):
    for tool, arguments in (('convert_whole', ('absent.pth', '--out', tmp_path / 'out')),
                            ('benchmark', ())):
        result = run_tool(f'tools/{tool}.py', 'configs/pspnet_repvgg_a0_shapes.py', *arguments, '--report',
                          '/proc/report.html', check=False)
        assert_refused(result, '/proc/report.html could not be written')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_report(tmp_path):
    (tmp_path / 'folder.html').mkdir()
    with pytest.raises(UserError, match='a folder'):
        check_output_file('--report', tmp_path / 'folder.html', '.html')


def test_full_disk_leaves_the_old_report(tmp_path):
    page = Page('x' * 100_000, 'Report', {}, [], [])
    (tmp_path / 'report.html').write_text('old')
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # files of 50 kB at most, as on a full disk
    try:
        with pytest.raises(UserError, match=r'report\.html could not be written .*nothing was left there'):
            write_page(tmp_path / 'report.html', page)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['old']


def test_a_name_that_is_no_text(tmp_path):
    write_page(tmp_path / 'report.html', Page('caf\udce9.py', 'Report', {}, [], []))
    assert 'caf\\udce9.py' in read((tmp_path / 'report.html').read_text()).text


def test_every_text_of_a_page_stays_text():
    texts = [f'{number} {HOSTILE}' for number in range(15)]
    given = iter(texts)
    table = Table((next(given), next(given)), [(next(given), next(given))], next(given))
    picture = Picture(HOSTILE, 'image/png', b'picture')
    gallery = Gallery([ImageComparison(next(given), [picture], 0, 1, next(given))], [(next(given), 'black')])
    page = read(render(Page(
        next(given), next(given), {next(given): next(given)}, [Verdict(next(given), next(given), next(given))],
        [Section(HOSTILE, HOSTILE, [table, gallery])])))
    assert list(given) == []
    for text in texts:
        assert text in page.text, text
    assert page.tags['img'] == 1 and page.addresses == ['data:image/png;base64,cGljdHVyZQ==']


def test_tables_are_folded_and_have_a_head_only_if_they_say_so():
    rows = [('a', '1'), ('b', '2')]
    page = read(render(Page('', '', {}, [], [Section('', '', [Table(('', ''), rows, 'shown')])])))
    assert page.tags['tr'] == 2 and not {'thead', 'details'} & set(page.tags) and 'shown' in page.text
    page = read(render(Page('', '', {}, [], [Section('', '', [Table(('name', ''), rows, 'opened', folded=True)])])))
    assert page.tags['tr'] == 3 and page.tags['thead'] == page.tags['details'] == 1
    assert page.text.count('opened') == 1  # in the summary, and not below the table again


def test_a_chart_keeps_its_markup_and_its_width():
    chart = Chart(Markup('<svg role="img"><text>bars</text></svg>'), HOSTILE, width_rem=12)
    content = render(Page('', '', {}, [], [Section('', '', [chart])]))
    page = read(content)
    assert page.tags['svg'] == 1 and '--width: 12rem' in content and HOSTILE in page.text
