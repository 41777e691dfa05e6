"""`downscale analyze ledger --data`: models of any origin, asked about pictures of one's own."""
import csv
import json

import hub_models
import numpy as np
import pair_file
import probed_study
import pytest
import small_bpe

from downscale.commands import main
from downscale.convert.exchange import import_model

WORDS = {'question': 'what is at a1', 'answer_before': 'circle', 'answer_after': 'square'}
EXPECTED = {'ledger.json', 'ledger.csv', 'ledger.png'}


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """A published Qwen3 with a SigLIP tower and tiles, of random values, as `import` leaves it."""
    root = tmp_path_factory.mktemp('imported')
    tokenizer = small_bpe.tokenizer()
    rows = tokenizer.get_vocab_size()
    # Rows of the embedding for all of its tokens, and for those that mark pictures and videos.
    grown = {name: np.random.default_rng(0).normal(size=(rows + 2, 32)).astype(np.float32)
             for name in ('language_model.model.embed_tokens.weight',
                          'language_model.lm_head.weight')}
    text = json.loads((hub_models.FOLDER / 'onevision_qwen3/config.json').read_text())
    sizes = text['text_config'] | {'vocab_size': rows + 2, 'max_position_embeddings': 512}
    config = {'text_config': sizes, 'image_token_index': rows, 'video_token_index': rows + 1}
    source = hub_models.rewrite('onevision_qwen3', root / 'hub', drop=tuple(grown), add=grown,
                                config=config)
    tokenizer.save(str(source / 'tokenizer.json'))
    import_model(source, root / 'vlm')
    return root / 'vlm'


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    folder, _ = probed_study.build(tmp_path_factory.mktemp('planted') / 'study')
    return folder


def run(*words):
    return main.main(['analyze', 'ledger', *map(str, words), '--bootstraps', '200', '--quiet'])


def rows_of(folder):
    return json.loads((folder / 'ledger.json').read_text())['rows']


def test_an_imported_model_has_a_ledger_of_pictures_of_ones_own(imported, tmp_path, capsys):
    """Its pictures are cut into tiles; its questions are any text."""
    path = pair_file.drawn(tmp_path, count=6, question='What color is it?',
                           field='color', key='mug')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for k, row in enumerate(list(rows)):  # a control: the wall has another shade
        pair_file.picture(tmp_path / f'shade{k}.png', box=row['box'], background=180)
        rows.append(row | {'id': f'c{k}', 'after': f'shade{k}.png', 'change': 'nothing',
                           'answer_after': 'red'})
    out = tmp_path / 'ledger'
    assert run(imported, '--data', pair_file.write_rows(tmp_path, rows), '--out', out) == 0
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == EXPECTED
    assert "vlm, color: no probes" in said and '24 are needed' in said and 'no controls' not in said
    found = {(row['setting'], row['what']): row for row in rows_of(out)
             if row['family'] == 'color'}
    for change in ('asked', 'nothing'):
        assert (found[f'full swap, {change}', 'nats']['n'],
                found[f'full swap, {change}', 'nats']['clusters']) == (6, 6)
    assert found['full swap, asked', 'nats']['low'] > 1 and 'stand in ledger.csv' in said
    share = found['all patches, asked', 'share of the full swap']
    assert share['value'] == pytest.approx(1, abs=1e-3)
    with (out / 'ledger.csv').open() as file:
        assert len(list(csv.DictReader(file))) > 0


def test_a_stage_and_its_study_are_asked_alike(study, tmp_path, capsys):
    path = pair_file.drawn(tmp_path, count=24, **WORDS)
    one = study / 'cells' / 'w64d4-s0' / 'instruct'
    assert run(one, '--data', path, '--out', tmp_path / 'one') == 0
    assert run(study, '--data', path, '--out', tmp_path / 'both') == 0
    said = capsys.readouterr().out
    assert 'w64d4-s0-instruct: most is lost where it should' in said
    stage, whole = rows_of(tmp_path / 'one'), rows_of(tmp_path / 'both')
    assert {row['table'] for row in whole} == {'w32d2-s0', 'w64d4-s0'}
    assert [row | {'table': ''} for row in stage] == [
        row | {'table': ''} for row in whole if row['table'] == 'w64d4-s0']
    assert any(row['what'] == 'probe of all' for row in stage)
    # 24 pairs of two answers are enough for probes; the connector of the small model gives nothing.
    left = {row['setting']: row['value'] for row in whole
            if (row['table'], row['family'], row['what']) == ('w32d2-s0', 'all', 'left')}
    assert left['encode'] > .9 and left['carry'] < .6


def test_several_models_stand_in_one_table(study, imported, tmp_path):
    path = pair_file.drawn(tmp_path, count=2, **WORDS)
    models = [study / 'cells' / f'{name}-s0' / 'instruct' for name in ('w32d2', 'w64d4')]
    assert run(*models, imported, '--data', path, '--out', tmp_path / 'out') == 0
    value = json.loads((tmp_path / 'out' / 'ledger.json').read_text())
    assert {row['table'] for row in value['rows']} == {'w32d2-s0-instruct', 'w64d4-s0-instruct',
                                                       'vlm'}
    assert run(models[0], '--data', path, '--out', tmp_path / 'out') == 0
    other = json.loads((tmp_path / 'out' / 'ledger.json').read_text())
    assert other['input_hash'] != value['input_hash']


def test_json_is_one_object(imported, tmp_path, capsys):
    path = pair_file.drawn(tmp_path, **WORDS)
    assert run(imported, '--data', path, '--out', tmp_path / 'out', '--json') == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (tmp_path / 'out' / 'ledger.json').read_text())


DATA, OUT, MODEL, STUDY = '--data PAIRS', '--out OUT', 'MODEL', 'STUDY'


@pytest.mark.parametrize('line, words', [
    (f'{MODEL} {DATA}', ['--data needs --out']),
    (MODEL, ['is the folder of a model; give --data']),
    (f'{MODEL} {DATA} {OUT} --pairs 5', ['--pairs is about made-up scenes']),
    (f'{STUDY} {DATA} {OUT} --scenes 5', ['--scenes is about made-up scenes']),
    (f'{MODEL} {DATA} {OUT} --cell a', ['--cell chooses among the cells of a study']),
    (f'{STUDY} {DATA} {OUT} --cell w64d4', ["unknown cell 'w64d4'; did you mean 'w64d4-s0'?"]),
    (f'{STUDY} {MODEL} {DATA} {OUT}', ['2 folders are given; give one study, or with --data']),
    (f'{STUDY} {STUDY}', ['2 folders are given']),
    (f'{MODEL} {MODEL} {DATA} {OUT}', ['is given twice']),
    (f'{MODEL}/checkpoints {DATA} {OUT}', ['is', 'a run folder?']),
    (f'nowhere {DATA} {OUT}', ['nowhere/experiment.json; is', 'nowhere a run folder?']),
    (f'TEXT {DATA} {OUT}', ['has no connector and no tower; give a model that can see']),
    (f'{MODEL} --data none.jsonl {OUT}', ['no file none.jsonl']),
    (f'{MODEL} --data pairs.csv {OUT}', ['are read from .json, .jsonl, .ndjson']),
    (f'{MODEL} --data BAD {OUT}', ['line 1', "'boxes'; did you mean 'box'"])])
def test_what_does_not_go_together_is_one_line(study, imported, tmp_path, capsys, monkeypatch,
                                               line, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad').mkdir()
    places = {'PAIRS': pair_file.drawn(tmp_path, **WORDS), 'OUT': 'out', 'MODEL': imported,
              'STUDY': study, 'BAD': pair_file.drawn(tmp_path / 'bad', boxes=[1, 2, 3, 4])}
    if 'TEXT' in line:
        import_model(hub_models.FOLDER / 'qwen3', tmp_path / 'text')
        places['TEXT'] = tmp_path / 'text'
    for name, place in places.items():
        line = line.replace(name, str(place))
    assert run(*line.split()) == 1
    out, err = capsys.readouterr()
    assert err.startswith('error: ') and err.count('\n') == 1 and len(err) <= 301, err
    assert all(word in err for word in words), err
    assert not (tmp_path / 'out').exists()


def test_the_help_is_one_screen(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit):
        main.main(['analyze', 'ledger', '--help'])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
