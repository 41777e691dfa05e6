"""What is true of each stage by its name: the one table that every room reads.

It stands below the data, because a batch is packed by it, and below the results, because they are
told in its order. `stage_config.Stage` is what a study says about a stage of its own: steps, rows,
rates.
"""
from dataclasses import dataclass

GROUPS = ('tower', 'connector', 'language')
# Alignment shows flat pictures, without a newline: 'instruct' draws that vector from the seed.
_ALL = ('language', 'tower', 'connector')
_FROM_INSTRUCT = (*_ALL, 'image_newline_D')


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """A row of the table.

    parents: {group of parameters: the stage that it starts from}. 'tower/tower' is the stage of
        another cell: the tower is shared by all sizes of one seed.
    trainable: the groups that it trains, unless a study names others.
    loss: 'tokens', those of the reply, 'words', which of them a caption holds, or 'policy', those
        that the model wrote itself, each weighed by what came of it; 'none' where nothing is
        learnt: a model is made smaller, and what it reads tells what to keep.
    rows: 'packed', as many conversations as fit, 'captioned', one picture and its caption, or
        'written', one question and what the model wrote for it.
    layout: 'tiles', as the study cuts pictures, or 'flat', each squashed into one tile.
    chat: 'own', that of the study, or 'bare': where ChatML is spoken, captions without it.
    writes: the kind of text that it is tuned to write; '' for none.
    answers: whether it answers questions with the picture before it.
    explains: whether it first writes what it sees and thinks: explain, then answer, in one model.
    reads: whether it is tuned to answer from texts.
    thinks: whether its conversations about made-up scenes may hold thoughts.
    shared: whether one cell has it for all sizes of a seed.
    divergence: of a teacher and the stage, where it has one: 'forward', KL(teacher || student), or
        'reverse', KL(student || teacher), for rows that the student writes itself.
    named: whether only cells have it whose points name it in `stages`.
    """
    parents: dict[str, str]
    trainable: tuple[str, ...] = GROUPS
    loss: str = 'tokens'
    rows: str = 'packed'
    layout: str = 'tiles'
    chat: str = 'own'
    writes: str = ''
    answers: bool = False
    explains: bool = False
    reads: bool = False
    thinks: bool = False
    shared: bool = False
    divergence: str = 'forward'
    named: bool = False


# Parents before children. Connector and tower see a picture in one tile (arXiv 2511.17487, 3.1).
STAGES = {
    'tower': StageKind(parents={}, trainable=('tower',), loss='words', rows='captioned',
                       layout='flat', shared=True),
    # Of another cell: 'instruct' is that of the size that this one is cut from.
    'shrink': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'instruct'), trainable=(),
                        loss='none', answers=True, named=True),
    'heal': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'shrink'), answers=True, named=True),
    'text': StageKind(parents={}, trainable=('language',), thinks=True),
    'align': StageKind(parents={'language': 'text', 'tower': 'tower/tower'},
                       trainable=('connector',), layout='flat', chat='bare'),
    'instruct': StageKind(parents=dict.fromkeys(_ALL, 'align'), answers=True),
    'interleave': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'instruct'), answers=True),
    'caption': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'instruct'), writes='caption'),
    'extract': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'caption'), writes='extraction'),
    'explain': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'instruct'), answers=True,
                         explains=True, thinks=True),
    'reason': StageKind(parents={'language': 'text'}, trainable=('language',), reads=True,
                        thinks=True),
    # It writes each thought itself, behind one question.
    'practise': StageKind(parents={'language': 'reason'}, trainable=('language',), loss='policy',
                          rows='written', reads=True, divergence='reverse', named=True),
    # Behind 'reason', whose reasoners judge what it writes.
    'perceive': StageKind(parents=dict.fromkeys(_FROM_INSTRUCT, 'extract'), loss='policy',
                          rows='written', writes='perceived', divergence='reverse'),
}
# The stages that answer with the picture, the later one first: of two it is the one to ask.
JOINT = tuple(name for name in reversed(STAGES)
              if STAGES[name].answers and not STAGES[name].explains)
EXPLAIN = 'explain'
# The stages that answer from texts, in the same order.
READERS = tuple(name for name in reversed(STAGES) if STAGES[name].reads)
# Kind of text: the stage that is tuned to write it.
WRITER = {kind.writes: name for name, kind in STAGES.items() if kind.writes}
