"""Stage 2b, several pictures: 309K of M4-Instruct and PieAPP, and 150K of stage 2a again.

Build:   downscale data build experiments/mixtures/instruct_multi459k.py --root data --to \\
             data/built/multi --tokenizer models/qwen3-0.6b/tokenizer.json
Paper:   arXiv 2511.17487, table 1. The 150K are drawn by seed from each set of CoIN in proportion;
         the reference draws them without a seed. How PieAPP is asked is not published: ours is a
         LLaVA JSON of a reference and two distorted pictures, 'Which is more like the first?'.
"""
import importlib.util
from pathlib import Path

from downscale.data.corpora.mixture import Mixture
from downscale.data.corpora.sources import Source

M4 = {  # task of table 1: names of its sets in `metadata.dataset` of the annotations
    'image_edit': ('HQ-Edit', 'MagicBrush', 'IEdit'),
    'story': ('AESOP', 'FlintstonesSV', 'PororoSV', 'VIST'),
    'nights': ('nights',),
    'puzzle': ('RAVEN',),
    'difference': ('Spot-the-Diff', 'Birds-to-Words', 'CLEVR-Change'),
    'multi_image_vqa': ('MIT-States_StateCoherence', 'MIT-States_PropertyCoherence',
                        'RecipeQA_ImageCoherence', 'VISION'),
    'text_rich': ('WebQA', 'TQA', 'OCR-VQA', 'DocVQA'),
}
OBTAIN_M4 = ('huggingface.co/datasets/lmms-lab/M4-Instruct-Data: m4_instruct_annotations.json, and '
             'the archives unpacked beside it')
AGAIN = 150_000


def get_mixture(arg=''):
    """Table 1 of the paper; `arg` is how many single-picture rows are seen again (150,000)."""
    single = _single()
    several = tuple(Source(f'm4_{task}', 'm4_instruct/m4_instruct_annotations.json',
                           images='m4_instruct', only=names, licence='CC BY 4.0, each set its own',
                           obtain=OBTAIN_M4) for task, names in M4.items())
    pieapp = Source('pieapp', 'pieapp/train.json', images='pieapp',
                    licence='research only, see its page',
                    obtain='prashnani.github.io/PieAPP: the pictures; the JSON is to be written '
                           'from its labels as described in experiments/mixtures')
    whole = sum(thousands for thousands, _ in single.SETS.values())
    again = tuple(single.coin(name, take=max(1, round(int(arg or AGAIN) * thousands / whole)))
                  for name, (thousands, _) in single.SETS.items())
    return Mixture('instruct_multi459k', (*several, pieapp, *again))


def _single():
    """The mixture file of stage 2a, which lies beside this one."""
    path = Path(__file__).with_name('instruct_single574k.py')
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
