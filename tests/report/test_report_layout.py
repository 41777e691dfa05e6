"""The report in a real browser: nothing is cut or too high, at the widths of a phone and of desks.
"""
import html
import json
import re
import shutil
import subprocess

import pytest
from fake_study import fake_study
from waiting import LIMIT

from downscale.report import report

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(not BROWSER, reason='needs Chromium')
MEASURE = '''<script>
var wide=document.documentElement.scrollWidth;
var cut=Array.from(document.querySelectorAll('main *')).filter(function(part){
 var box=part.getBoundingClientRect();
 return box.width&&box.right>innerWidth+1&&!part.closest('.wide')}).map(function(part){
 return part.outerHTML.slice(0,120)});
var small=Array.from(document.querySelectorAll('.panels svg')).filter(function(part){
 var box=part.getBoundingClientRect();return box.width&&box.width<.93*part.viewBox.baseVal.width})
 .length;
parent.postMessage(JSON.stringify({inner:innerWidth,wide:wide,cut:cut.slice(0,3),small:small,
 high:high}),'*')</script>'''
OPEN = '''<script>var high=document.querySelector('main').getBoundingClientRect().height;
document.querySelectorAll('details').forEach(function(d){d.open=true});measure()</script>'''
# A window of a browser without a screen is 500 pixels wide at least; a frame may be narrower.
FRAME = '''<iframe src="measured.html" style="width:WIDTHpx;height:900px;border:0"></iframe><script>
addEventListener('message',function(event){document.body.innerText=event.data})</script>'''


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    root = fake_study(tmp_path_factory.mktemp('page') / 'study', pictures=12)
    path = report.write_report(root, bootstraps=30)
    text = path.read_text().replace('</html>', f'{OPEN}{MEASURE}</html>')
    (path.parent / 'measured.html').write_text(text)
    return path.parent


def measured(page, width, folder):
    """What the script above saw of the page, folded (`high`) and with all details open."""
    frame = page / f'frame{width}.html'
    frame.write_text(FRAME.replace('WIDTH', str(width)))
    done = subprocess.run(
        [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}',
         '--window-size=1700,1000', '--virtual-time-budget=4000', '--dump-dom',
         frame.as_uri()], capture_output=True, text=True, check=True, timeout=LIMIT)
    return json.loads(html.unescape(re.search(r'<body>(.*?)</body>', done.stdout, re.DOTALL)[1]))


@pytest.mark.parametrize('width', [400, 1100, 1600])
def test_nothing_is_cut_without_a_sign_and_no_type_is_tiny(page, width, tmp_path):
    seen = measured(page, width, tmp_path)
    assert seen['wide'] <= seen['inner'] == width, seen
    assert seen['cut'] == [] and seen['small'] == 0, seen
    if width > 400:
        assert 1000 < seen['high'] <= 12_000
