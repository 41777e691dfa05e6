"""The last step: accepted rows as training data in LLaVA's form, each with where it came from."""
from downscale.data.records import IMAGE


def rows(factory, quality, looked, told):
    """Return the training records of accepted pictures, in the order of `quality`.

    The question is the perception prompt with what to look at for all questions of the picture, the
    reply is the description; `image` is the path that the source had.
    """
    found = []
    for row in quality:
        if not row['accepted']:
            continue
        image = row['doc_id']
        found.append({
            'id': row['ids'][0], 'image': image,
            'conversations': [
                {'from': 'human', 'value': f'{IMAGE}\n'
                 f'{factory.form.describe("extract", looked[image]["text"])}'},
                {'from': 'gpt', 'value': told[image]['text']}],
            'provenance': {
                'ids': row['ids'], 'rows': row['rows'], 'quality': row['key'],
                'rules': row['rules'], 'picture': told[image]['picture'],
                'teacher': factory.teacher.settings, 'prompts': factory.steps.hash,
                'training_prompts': factory.form.hash, 'seed': factory.seed}})
    return found
