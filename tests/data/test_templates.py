"""Chat templates of published folders: rendered as transformers does, and what is learnt."""
import json
import shutil

import numpy as np
import pytest
import small_bpe
from hub_models import FOLDER, rewrite

import downscale
from downscale.convert import exchange
from downscale.data.chat import CHATS
from downscale.data.records import IMAGE, Turn
from downscale.data.templates import Template
from downscale.data.tokens import Encoder, Layout, load_tokenizer
from downscale.evaluate.answers import prompt_of
from downscale.generate.requests import Decoding, Request, check
from downscale.stages.loading import encoder_of

END = ('<|im_end|>', '</s>')
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TEMPLATES = {
    'system': "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am Q.<|im_end|>\n"
              "{% endif %}" + CHATML,
    'opens a thought': CHATML.replace('assistant\n{% endif', 'assistant\n<think>\n{% endif'),
    'instruct': "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != "
                "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
                "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
                "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}",
    'drops thoughts': CHATML.replace("{{ m['content'] }}", "{% if m['role'] == 'assistant' %}"
                                     "{{ m['content'].split('</think>')[-1] }}{% else %}"
                                     "{{ m['content'] }}{% endif %}"),
    'generation': CHATML.replace("{{ m['content'] }}", "{% if m['role'] == 'assistant' %}"
                                 "{% generation %}{{ m['content'] }}{% endgeneration %}"
                                 "{% else %}{{ m['content'] }}{% endif %}"),
    'controls': "{% for m in messages %}{% if m['role'] == 'system' %}{% continue %}{% endif %}"
                "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    'tools': "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML}
ASKED = (Turn(role='user', text='Two\n', supervised=False),)
TALK = (
    *ASKED,
    Turn(role='assistant', text='three', supervised=True),
    Turn(role='user', text='and', supervised=False),
    Turn(role='assistant', text='<think>\nOne.\n</think>\n\nfive', supervised=True),
)


def template(name, **more):
    return Template(text=TEMPLATES[name], tokens={'bos_token': '<s>'}, ends=END, **more)


def learnt(form, turns):
    return [text for text, weight in form.pieces(turns) if weight]


@pytest.mark.parametrize('name', TEMPLATES)
def test_text_is_what_transformers_renders(name):
    transformers = pytest.importorskip('transformers')
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_bpe.tokenizer(), chat_template=TEMPLATES[name], bos_token='<s>')
    for turns in (ASKED, TALK):
        messages = [{'role': turn.role, 'content': turn.text} for turn in turns]
        for reply in (False, True):
            wanted = theirs.apply_chat_template(messages, tokenize=False,
                                                add_generation_prompt=reply)
            assert template(name).rendered(turns, reply) == wanted
            assert ''.join(text for text, _ in template(name).pieces(turns, reply)) == wanted


def test_the_reply_and_its_end_token_are_learnt_and_nothing_else():
    thought = '<think>\nOne.\n</think>\n\nfive<|im_end|>'
    for name in ('system', 'generation', 'controls', 'tools'):
        assert learnt(template(name), TALK) == ['three<|im_end|>', thought], name
    # A thought that the prompt opens is given, not learnt; one that is left out is not there.
    assert learnt(template('opens a thought'), TALK) == ['three<|im_end|>', thought[8:]]
    assert learnt(template('drops thoughts'), TALK) == ['three<|im_end|>', '\n\nfive<|im_end|>']
    assert learnt(template('instruct'), TALK)[0] == 'three</s>'


def test_a_reply_without_a_thought_closes_the_one_that_the_template_opens():
    form = template('opens a thought')
    assert form.rendered(ASKED, True, True).endswith('assistant\n<think>\n')
    assert form.rendered(ASKED, True, False).endswith('assistant\n<think>\n\n</think>\n\n')
    assert not template('system').rendered(ASKED, True, False).rstrip().endswith('</think>')


def test_what_a_template_refuses_or_hides_is_one_line():
    with pytest.raises(ValueError, match='refuses a conversation: roles must alternate'):
        template('instruct').rendered((Turn(role='assistant', text='x', supervised=False),))
    for text in ('{% for', '{{ messages[9].content }}', "{{ 'a' * 10**9 }}", '{{ 9 ** 9 ** 9 }}',
                 "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(ValueError, match='refuses') as error:
            Template(text=text).rendered(ASKED)
        assert '\n' not in str(error.value) and len(str(error.value)) < 300
    endless = Template(text=CHATML.replace('<|im_end|>', ''), tokens={}, ends=END)
    with pytest.raises(ValueError, match='ends no reply'):
        endless.pieces(TALK)
    with pytest.raises(ValueError, match='writes 0 pictures where the conversation has 1'):
        Template(text='x').rendered((Turn(role='user', text=IMAGE, supervised=False),))


def test_the_date_is_the_same_every_day():
    assert Template(text="{{ strftime_now('%d %b %Y') }}").rendered(ASKED) == '26 Jul 2024'


def test_lists_of_texts_and_pictures_are_written_in_order():
    form = Template(
        text="{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == "
        "'image' %}<pic>{% else %}{{ part['text'] }};{% endif %}{% endfor %}"
        '</s>{% endfor %}',
        tokens={},
        ends=END,
        parts=True,
        image='<pic>',
    )
    turns = (
        Turn(role='user', text=f'is {IMAGE}\nit {IMAGE}', supervised=False),
        Turn(role='assistant', text='x', supervised=True),
    )
    assert form.rendered(turns) == f'is;{IMAGE}it;{IMAGE}</s>x;</s>'


# --- at import ------------------------------------------------------------------------------------

def hub(tmp_path, name='qwen3', files=(), config=()):
    """A stored model with a tokenizer that fits, and side files."""
    word, grown = small_bpe.tokenizer(), {}
    rows = word.get_vocab_size()
    for key in ('model.embed_tokens.weight', 'lm_head.weight'):
        grown[key] = np.random.default_rng(0).normal(size=(rows, 32)).astype(np.float32)
    source = rewrite(name, tmp_path / 'model', drop=tuple(grown), add=grown,
                     config={'vocab_size': rows, **dict(config)}.items())
    word.save(str(source / 'tokenizer.json'))
    for file, value in dict(files).items():
        (source / file).write_text(value if isinstance(value, str) else json.dumps(value))
    return source


def opened(source):
    model = exchange.open_model(source, 'x')
    return model.experiment, model.notes


def test_a_template_that_equals_a_built_in_chat_is_that_chat(tmp_path):
    smollm = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
              "{{ '<|im_start|>system\n" + CHATS['smollm2'].default_system + "<|im_end|>\n' }}"
              "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
              "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
              "{{ '<|im_start|>assistant\n' }}{% endif %}")
    source = hub(tmp_path, files={'tokenizer_config.json': {'eos_token': '<|im_end|>',
                                                            'chat_template': smollm}})
    cell, _ = opened(source)
    assert (cell.chat, cell.origin.template) == ('smollm2', '')
    (source / 'chat_template.jinja').write_text(TEMPLATES['system'])
    cell, notes = opened(source)
    assert cell.chat == 'template' and cell.chat_of('x').text == TEMPLATES['system']
    assert any('chat_template.jinja goes before it' in note for note in notes)


def test_end_tokens_and_context_of_a_folder_reach_the_engine(tmp_path):
    source = hub(tmp_path, files={
        'generation_config.json': {'eos_token_id': [3, 5], 'top_k': 20},
        'tokenizer_config.json': {'eos_token': '<|im_end|>'}},
        config={'eos_token_id': 7, 'max_position_embeddings': 12})
    exchange.import_model(source, tmp_path / 'run')
    _, _, tokenizer, cell = downscale.load(tmp_path / 'run')
    encoder = encoder_of(tmp_path / 'run', cell, 'run')
    assert encoder.stops == {3, 5, 7, tokenizer.token_to_id('<|im_end|>')}
    assert encoder.text([40, 41, 5, 42]) == tokenizer.decode([40, 41]).strip()
    prompt = prompt_of(encoder, 'a')
    with pytest.raises(ValueError, match=r'the model was trained on 12 \(max_position_emb'):
        check([Request(prompt, limit=9)], Decoding(), 400, (-1, -1), 0, encoder.context)
    check([Request(prompt, limit=9)], Decoding(), 400, (-1, -1), 0, 0)
    assert any('top_k' in note for note in opened(source)[1])


def test_a_tokenizer_neither_cuts_nor_pads(tmp_path):
    source = hub(tmp_path)
    word = small_bpe.tokenizer().from_str(small_bpe.tokenizer().to_str())
    word.enable_truncation(4)
    word.enable_padding(length=32)
    word.save(str(source / 'tokenizer.json'))
    notes = exchange.import_model(source, tmp_path / 'run')
    assert 'switched off in tokenizer.json: truncation and padding' in notes
    stored = json.loads((tmp_path / 'run' / 'tokenizer.json').read_text())
    assert stored['truncation'] is None and stored['padding'] is None
    ids = load_tokenizer(source / 'tokenizer.json').encode('Two and three make five. ' * 3).ids
    assert ids == small_bpe.tokenizer().encode('Two and three make five. ' * 3).ids


def test_vocab_and_merges_make_the_tokenizer_that_they_came_from(tmp_path):
    source, word = hub(tmp_path), small_bpe.tokenizer()
    state = json.loads(word.to_str())
    (source / 'tokenizer.json').unlink()
    (source / 'vocab.json').write_text(json.dumps(state['model']['vocab']))
    (source / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(
        ' '.join(pair) for pair in state['model']['merges']))
    settings = {'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': {
        str(token['id']): token for token in state['added_tokens']}}
    (source / 'tokenizer_config.json').write_text(json.dumps(settings))
    exchange.import_model(source, tmp_path / 'run')
    built = downscale.load(tmp_path / 'run')[2]
    for text in small_bpe.AWKWARD:
        assert built.encode(text).ids == word.encode(text).ids
    (source / 'tokenizer_config.json').write_text('{"tokenizer_class": "XTokenizer"}')
    with pytest.raises(ValueError, match="tokenizer_class 'XTokenizer' is not known"):
        opened(source)
    (source / 'vocab.json').unlink()
    (source / 'tokenizer.model').write_bytes(b'x')
    with pytest.raises(ValueError, match='SentencePiece'):
        opened(source)


@pytest.mark.parametrize('key, value', [
    ('image_mean', [0.48, 0.46, 0.41]), ('image_std', 0.27), ('rescale_factor', 1 / 127.5),
    ('resample', 2), ('do_normalize', False), ('size', {'shortest_edge': 18}),
    ('size', {'height': 18, 'width': 20}), ('do_center_crop', True)])
@pytest.mark.parametrize('nested', [False, True])
def test_pictures_that_the_folder_prepares_otherwise_are_refused(tmp_path, key, value, nested):
    source = shutil.copytree(FOLDER / 'onevision_qwen2', tmp_path / 'm')
    good = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3, 'size': {'height': 18, 'width': 18}}
    name = 'processor_config.json' if nested else 'preprocessor_config.json'

    def write(values):
        (source / name).write_text(json.dumps({'image_processor': values} if nested else values))
    write(good)
    opened(source)
    write(good | {key: value})
    with pytest.raises(ValueError, match=f'{name}: {key} .* is not implemented'):
        opened(source)


def test_an_encoder_takes_a_template_as_any_chat():
    form = Template(text=TEMPLATES['system'], tokens={}, ends=END)
    own = Encoder(small_bpe.tokenizer(), form, Layout(None))
    arrays = own.encode(TALK[:2])
    text = own.tokenizer.decode(arrays['tokens'][arrays['weights'] > 0], skip_special_tokens=False)
    assert text == 'three<|im_end|>'
