"""The last step: accepted rows as training data in LLaVA's form, each with where it came from."""
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from downscale.data.records import IMAGE

if TYPE_CHECKING:
    from downscale.factory.factory import Factory


def rows(factory: 'Factory', quality: Sequence[dict[str, Any]],
         information: Mapping[str, dict[str, Any]],
         descriptions: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the training records of accepted pictures, in the order of `quality`.

    `information` and `descriptions` are {image: row}. The question is the perception prompt with
    what to look at for all questions of the picture, the reply is the description; `image` is the
    path that the source had.
    """
    records = []
    for row in quality:
        if not row['accepted']:
            continue
        image = row['doc_id']
        description = descriptions[image]
        question = factory.form.describe('extract', information[image]['text'])
        provenance = {'ids': row['ids'], 'rows': row['rows'], 'quality': row['key'],
                      'rules': row['rules'], 'picture': description['picture'],
                      'teacher': factory.teacher.settings, 'prompts': factory.steps.hash,
                      'training_prompts': factory.form.hash, 'seed': factory.seed}
        turns = [{'from': 'human', 'value': f'{IMAGE}\n{question}'},
                 {'from': 'gpt', 'value': description['text']}]
        records.append({'id': row['ids'][0], 'image': image, 'conversations': turns,
                        'provenance': provenance})
    return records
