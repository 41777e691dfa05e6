"""A page of scenes shows each picture, and each question with its answer."""
import base64
from html import unescape

from downscale.data.scenes.clutter_world import Clutter
from downscale.data.scenes.dataset import scene_example
from downscale.view.scene_page import write_page


def test_a_page_holds_the_pictures_and_all_that_is_asked(tmp_path):
    examples = [scene_example(Clutter(n_facts=4), 'test', i)[0] for i in range(2)]
    write_page(tmp_path / 'page.html', 'a <world>', examples)
    text = (tmp_path / 'page.html').read_text()
    assert 'a &lt;world&gt;' in text and 'a <world>' not in text
    for example in examples:
        assert base64.b64encode(example.images[0]).decode() in text
        assert example.caption in unescape(text)
        for question in example.questions:
            wanted = f'{question.text}? {question.answer} (guess {question.chance:.2f})'
            assert question.family in text and wanted in unescape(text)
