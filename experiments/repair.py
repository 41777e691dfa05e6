"""Does a perception model of 0.6B learn to see what a reasoner of 1.7B needs? By its success.

The paper's perception model is tuned on given extractions. Here it goes on from there: it writes
four descriptions of each question, the reasoner answers from every one, and what it answered
rightly from becomes likelier.

Command:   downscale plan experiments/repair.py --topology v5e:16x16
           downscale study experiments/repair.py                   (with data and models)
           downscale study experiments/repair.py:dry               (of test_real_studies.py)
Hardware:  the plan: 2 CPU cores; training: one TPU host (more: downscale launch)
Data:      as experiments/extraction_tuning.py, and data/virl39k/train.jsonl, a file of questions
           (`downscale/evaluate/question_files.py`) that say what to look at
Expect:    nothing trained yet at this scale: no published data was at hand. Settings of the last
           stage are those of the public code of RAPID (github.com/gyhdog99/RACRO2, commit 46ddeae,
           verl-main/examples/grpo_trainer/captioner3b_7b.sh): 256 questions of 4 descriptions
           written at once and learnt in two steps, rate 1e-6, KL 0.001; ratios are cut at 0.2 on
           either side, its trainer's default. CapRL++ (github.com/InternLM/CapRL, commit 6be7f28)
           takes 128 questions of 8. Theirs write up to 8,192 tokens with 3B and are read by 7B;
           ours write 1,024, as in all our studies of this scale. One epoch of 39,000 questions.
"""
from ml_collections import ConfigDict

from downscale.experiment import recipe

REASONER = '1.7b'


def get_config(arg=''):
    """The study's settings, the same for every size and seed (see `sweep` for `arg`)."""
    dry, _, _ = recipe.parsed('repair', arg)
    settings = recipe.study(
        'repair', ('align', 'extract'),
        dict(benchmarks=recipe.CHOICE, information=recipe.INFORMATION,
             texts=('extraction', 'perceived')), dry)
    room = dict(length=1024, tiles=48) if dry else dict(length=9216, tiles=37)
    group = dict(batch=4, steps=2) if dry else dict(batch=512, steps=304)
    reasoner = recipe.TINY[REASONER] if dry else REASONER
    settings['stages']['perceive'] = dict(
        **group, **room, rates=dict.fromkeys(recipe.ALL, 1e-6), warmup=0.0, final=1.0,
        loss_norm='example', save_every=2 if dry else 50,
        policy=dict(reasoners=(f'models/qwen3-{reasoner}',), group=2 if dry else 4,
                    updates=1 if dry else 2, write=8 if dry else 1024, answer=4 if dry else 1024,
                    clip=(0.2, 0.2), kl=0.001, questions='data/virl39k/train.jsonl'))
    return ConfigDict(settings)


def sweep(arg=''):
    """The smallest size and its reader; 'SIZE,SIZE/SEED,SEED' names others."""
    dry, sizes, seeds = recipe.parsed('repair', arg)
    reader = recipe.TINY[REASONER] if dry else REASONER
    return recipe.points(sizes if arg.partition('/')[0] not in ('', 'dry') else sizes[:1], seeds,
                         (reader,))


def twin(arg=''):
    """The argument that makes the tiny twin of `arg`, for a rehearsal."""
    return recipe.twin(arg)
