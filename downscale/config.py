"""One cell: a frozen `Experiment`, and the way from a ConfigDict or JSON to it.

A study file gives `get_config(arg)` and `sweep()`. `cells_of(config, sweep)` turns them into
experiments; `load` and `save` move one to and from `experiment.json`. Nothing below this module
sees a ConfigDict.
"""
import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated

from downscale.data.buckets import BATCH, LENGTH, TILES, Shape, in_order
from downscale.data.chat import CHATS
from downscale.data.scenes.conversations import LOSS_NORM, SHARE, STAGE, TURNS, Recipe
from downscale.data.scenes.world import World
from downscale.data.templates import Origin
from downscale.data.tokens import Layout
from downscale.experiment import sweeps
from downscale.model.remat import POLICIES
from downscale.model.vlm import Vlm
from downscale.model.words import WordModel
from downscale.runtime.files import place, write_json
from downscale.sizes import LANGUAGE, LanguageConfig, Parametrisation, Pictures, VisionConfig, scale
from downscale.train.optimizer import FINAL, GROUPS, WARMUP, Optimizer, Schedule
from downscale.values import COUNT, Choice, Range, Several, check, from_dict, shown, unknown

_ALL = ('language', 'tower', 'connector')
_FROM_INSTRUCT = (*_ALL, 'image_newline_D')
_GROUP = Annotated[str, Choice(GROUPS, 'group')]
_PARENTED = Annotated[str, Choice(_FROM_INSTRUCT, 'group')]
# What each stage starts from (group -> stage) and which groups it trains. A parent written as
# 'tower/tower' is the stage of another cell: the tower is shared by all sizes of one seed.
STAGES = {
    'tower': {'parents': {}, 'trainable': ('tower',)},
    'text': {'parents': {}, 'trainable': ('language',)},
    'align': {'parents': {'language': 'text', 'tower': 'tower/tower'}, 'trainable': ('connector',)},
    'instruct': {'parents': {name: 'align' for name in _ALL}, 'trainable': GROUPS},
    'interleave': {'parents': {name: 'instruct' for name in _FROM_INSTRUCT}, 'trainable': GROUPS},
    'caption': {'parents': {name: 'instruct' for name in _FROM_INSTRUCT}, 'trainable': GROUPS},
    'extract': {'parents': {name: 'caption' for name in _FROM_INSTRUCT}, 'trainable': GROUPS},
    'reason': {'parents': {'language': 'text'}, 'trainable': ('language',)},
}

WRITER = {'caption': 'caption', 'extraction': 'extract'}  # kind of text: the stage tuned for it
TEMPLATE = 'template'  # the chat that came along with an imported language model
BRIEF = 'brief'  # a caption cut to the length of the extraction that the same model wrote


@dataclass(frozen=True)
class Stage:
    """One stage of a cell. `batch` is global; `rates` are peak learning rates by group.

    `buckets` are smaller shapes of batches for what does not need `length` and `tiles`; `steps`
    counts the batches of all shapes. See `pipeline.Recipe` for what they do to the loss.
    `mixture` is the folder of a mixture built from published sets (`downscale data build`); without
    it the stage is trained on the scene world.
    """
    name: STAGE
    steps: Annotated[int, Range(1, COUNT, 'steps of the stage')]
    batch: BATCH
    length: LENGTH
    tiles: TILES
    rates: dict[_GROUP, Annotated[float, Range(
        0, 1e38, 'peak learning rate of a group; leave a group out of `trainable` to freeze it',
        without=(0,))]]
    trainable: Annotated[tuple[_GROUP, ...], Several(1, 'the groups that a stage trains')]
    parents: dict[_PARENTED, str]
    warmup: WARMUP = 0.05
    final: FINAL = 0.1
    replay: dict[STAGE, SHARE] = dataclasses.field(default_factory=dict)
    loss_norm: LOSS_NORM = 'token'
    turns: TURNS = 6
    save_every: Annotated[int, Range(1, COUNT, 'steps from one checkpoint to the next')] = 200
    buckets: tuple[Shape, ...] = ()
    mixture: str = ''

    def __post_init__(self):
        check(self)
        lacking = sorted(set(self.trainable) - set(self.rates))
        if lacking:
            raise ValueError(f'stage {self.name} trains {lacking} without a rate in `rates`')
        if self.mixture and (self.name == 'tower' or self.replay):
            raise ValueError(f'stage {self.name}: a mixture is neither for the tower stage nor for '
                             '`replay`; give its sources their shares in the mixture')
        assert self.recipe and self.shape  # made here for their own checks, before work starts
        self._check_buckets()

    def _check_buckets(self):
        if self.buckets and self.name == 'tower':
            raise ValueError('stage tower has one picture and its caption in a row, and one shape; '
                             'leave out its buckets')
        sizes = [(bucket.length, bucket.tiles) for bucket in self.buckets]
        for size in sizes:
            where = f'stage {self.name}: a bucket of {size[0]} tokens and {size[1]} tiles'
            if not self.shape.holds(*size) or size == (self.length, self.tiles):
                raise ValueError(f'{where} is not smaller than the stage\'s rows of {self.length} '
                                 f'tokens and {self.tiles} tiles; raise `length` or `tiles`, or '
                                 'leave it out')
            if sizes.count(size) > 1:
                raise ValueError(f'{where} occurs {sizes.count(size)} times; keep one')

    @property
    def loss(self):
        return 'words' if self.name == 'tower' else 'tokens'

    @property
    def recipe(self):
        return Recipe(self.name, tuple(self.replay.items()), self.loss_norm, self.turns)

    @property
    def shape(self):
        return Shape(self.batch, self.length, self.tiles)

    @property
    def shapes(self):
        """The shapes of all batches, from the smallest to `shape`."""
        return in_order((*self.buckets, self.shape))

    @property
    def schedule(self):
        return Schedule(self.steps, self.warmup, self.final)


@dataclass(frozen=True)
class Data:
    """How many scenes each split holds, and the share of picture triples among them."""
    train: Annotated[int, Range(0, COUNT, 'scenes to train on')] = 0
    validation: Annotated[int, Range(0, COUNT, 'scenes to validate on')] = 0
    test: Annotated[int, Range(0, COUNT, 'scenes to ask about')] = 0
    similarity_share: Annotated[float, Range(0, 1, 'share of picture triples among them')] = 0.1

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Evaluation:
    """What is asked after training. At most `batch` rows are written at once.

    `answer`, `write` and `think` bound an answer, a description and a thought, in tokens.
    `texts` are the kinds of text that reasoners read: 'caption', 'extraction' and 'brief', a
    caption cut to the length of the extraction that the same model wrote for the question.
    `benchmarks` maps names of published benchmarks, or any name for one's own questions, to their
    files (see `downscale benchmark` and `evaluate/question_files.py`), `images` to the folders of
    their pictures, `information` to files that say what to look at and `scorers` to who judges;
    with any, they take the place of the scenes, and `scenes` is how many questions of each (0:
    all). Without any and with no `scenes`, nothing is asked.
    """
    scenes: Annotated[int, Range(0, COUNT, 'scenes, or questions of each benchmark')] = 0
    batch: Annotated[int, Range(1, 2 ** 20, 'rows that are written at once')] = 128
    answer: Annotated[int, Range(1, 2 ** 20, 'tokens of an answer at most')] = 8
    write: Annotated[int, Range(1, 2 ** 20, 'tokens of a description at most')] = 64
    think: Annotated[int, Range(0, 2 ** 20, 'tokens of a thought at most')] = 104
    conditions: Annotated[
        tuple[Annotated[str, Choice(('image', 'blind', 'shuffled'), 'condition')], ...],
        Several(0, 'what a model that sees is shown')] = ('image', 'blind', 'shuffled')
    texts: Annotated[
        tuple[Annotated[str, Choice((*WRITER, BRIEF), 'kind')], ...],
        Several(0, 'the kinds of text that reasoners read')] = ('caption', 'extraction')
    thinking: Annotated[tuple[bool, ...],
                        Several(1, 'whether reasoners think before they answer')] = (False, True)
    pictures: Annotated[int, Range(0, 100_000, 'pictures that the report may show')] = 24
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)
    information: dict[str, str] = dataclasses.field(default_factory=dict)
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    scorers: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check(self)
        if BRIEF in self.texts and not set(WRITER) <= set(self.texts):
            raise ValueError(f'evaluation.texts: {BRIEF!r} is cut from a caption to the length of '
                             'an extraction; ask for both as well')


_DEVICES = Annotated[int, Range(-1, 2 ** 20, 'devices along an axis; -1 is what is left',
                                without=(0,))]


@dataclass(frozen=True)
class MeshSize:
    """Devices along each mesh axis; -1 takes what is left."""
    data: _DEVICES = -1
    fsdp: _DEVICES = 1
    tensor: _DEVICES = 1

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Experiment:
    """A cell: sizes, stages, data, seed and mesh. `size` names the language model.

    `imports` maps groups to the folders of imported models that they start from; paths count from
    where the study is run. An imported model is itself a cell, without stages; it may lack
    `language` (a tower alone) or `vision`. `budget` is a label of the compute that the cell spends.
    `chat` names a built-in chat, or is 'template': that of the imported language model. `origin`
    is of an imported model alone.
    """
    name: str
    size: str
    seed: Annotated[int, Range(0, 2 ** 32 - 1, 'seed of the cell')]
    language: LanguageConfig | None
    vision: VisionConfig | None
    world: World = World()
    data: Data = Data()
    stages: tuple[Stage, ...] = ()
    evaluation: Evaluation = Evaluation()
    pictures: Pictures = Pictures()
    imports: dict[_PARENTED, str] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = Optimizer()
    parametrisation: Parametrisation = Parametrisation()
    mesh: MeshSize = MeshSize()
    chat: Annotated[str, Choice((*CHATS, TEMPLATE), 'chat')] = 'micro'
    legacy_structural_loss: bool = False
    tokenizer: str = ''
    dtype: Annotated[str, Choice(('float32', 'bfloat16'), 'dtype')] = 'float32'
    remat: Annotated[str, Choice(tuple(POLICIES), 'remat')] = 'none'
    unroll: Annotated[int, Range(1, 10_000, 'layers in one turn of the loop over layers')] = 1
    budget: str = ''
    origin: Origin | None = None

    def __post_init__(self):
        check(self)
        self._check_chat()
        self._check_parametrisation()
        for stage in self.stages:
            lacks = 'language' if self.language is None else 'vision' if self.vision is None \
                and (stage.tiles or stage.name == 'tower') else None
            if lacks:
                raise ValueError(f'stage {stage.name} needs a model that the cell does not have: '
                                 f'its {lacks} is None')
        most = self.optimizer.accumulate
        for stage in self.stages:
            for batch in (shape.batch for shape in stage.shapes):
                if batch % most:
                    raise ValueError(f'stage {stage.name}: batch {batch} does not divide into '
                                     f'{most} micro-batches ({batch} % {most} = {batch % most})')

    def _check_chat(self):
        if self.chat == TEMPLATE:
            if self.origin is None and 'language' not in self.imports:
                raise ValueError(f'chat {TEMPLATE!r} is that of an imported language model; give '
                                 f'`imports` one, or a built-in chat of {sorted(CHATS)}')
            if self.legacy_structural_loss:
                raise ValueError('legacy_structural_loss learns the headers of a built-in chat; '
                                 f'leave it out where chat is {TEMPLATE!r}')

    def _check_parametrisation(self):
        if self.parametrisation != Parametrisation():
            given = sorted(set(self.imports) - {'tower'})
            if given or self.language is None:
                raise ValueError('a parametrisation is for language models that start from random '
                                 f'values, not for imports of {given}; leave it out and choose the '
                                 'rate of each size')
            assert self.parametrisation.growth(self.language)  # for its own check

    def stage(self, name):
        """The stage called `name`; ValueError naming the nearest."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(unknown('stage', name, [stage.name for stage in self.stages]))

    @property
    def joint_stage(self):
        """The stage that answers with the picture, the last of instruction tuning; None without."""
        names = [stage.name for stage in self.stages]
        return next((name for name in ('interleave', 'instruct') if name in names), None)

    def writer_stage(self, kind):
        """The stage that writes texts of a `kind`: its own, or where published data has made no
        such stage the one that answers; None without."""
        if WRITER[kind] in [stage.name for stage in self.stages]:
            return WRITER[kind]
        return self.joint_stage if self.evaluation.benchmarks else None

    def model(self, stage='instruct'):
        """The module that a stage trains."""
        if stage == 'tower':
            return WordModel(self.vision, self.language.V, unroll=self.unroll)
        return Vlm(self.language, self.vision, dtype=self.dtype, remat=self.remat,
                   unroll=self.unroll, newline=self.layout(stage).newline,
                   growth=self.parametrisation.growth(self.language))

    def layout(self, stage):
        """How a stage cuts pictures; connector and tower see each one squashed into one tile, with
        no newline (arXiv 2511.17487, section 3.1)."""
        flat = dataclasses.replace(self.pictures, mode='flat')
        return Layout(self.vision, flat if stage in ('align', 'tower') else self.pictures)

    def chat_of(self, stage):
        """The format of a stage; where ChatML is spoken, the connector learns bare captions."""
        if self.chat == TEMPLATE:
            if not self.published.template:
                raise ValueError(f'{self.name}: chat is {TEMPLATE!r}, but the imported language '
                                 f'model brought none; choose one of {sorted(CHATS)}')
            return self.published.chat
        name = 'plain' if (self.chat, stage) == ('chatml', 'align') else self.chat
        return dataclasses.replace(CHATS[name], legacy_structural_loss=self.legacy_structural_loss)

    @property
    def published(self):
        """The `Origin` of the language model, its own or that of its import."""
        if self.origin is not None or 'language' not in self.imports:
            return self.origin or Origin()
        return load(self.imports['language']).published

    @property
    def asks(self):
        """Whether anything is asked of this cell, about scenes or from benchmarks."""
        return bool(self.evaluation.benchmarks) or self.evaluation.scenes > 0

    @property
    def hash(self):
        """A short hash of everything in this cell."""
        value = dataclasses.asdict(self)
        if not self.evaluation.scorers:
            del value['evaluation']['scorers']  # as with parametrisation
        del value['budget']  # a label changes nothing
        if self.origin is None:
            del value['origin']
        if self.parametrisation == Parametrisation():
            del value['parametrisation']  # runs from before there was a choice keep their hash
        text = json.dumps(value, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def save(experiment, folder):
    """Write `folder/experiment.json`."""
    value = dataclasses.asdict(experiment)
    if experiment.origin is None:  # as in the files of before there was one
        del value['origin']
    write_json(place(folder) / 'experiment.json', value)


def load(folder):
    """The experiment of a run folder; one-line errors when the file is missing or damaged."""
    path = place(folder) / 'experiment.json'
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; is {folder} a run folder?')
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}); delete it and run the stage '
                         'again') from None
    if isinstance(value, dict) and isinstance(value.get('evaluation'), dict):
        value['evaluation'].pop('length', None)  # of runs from before prompts had any length
    if isinstance(value, dict) and isinstance(value.get('remat'), bool):  # before it had a name
        value['remat'] = 'full' if value['remat'] else 'none'
    try:
        return from_dict(Experiment, value, str(path))
    except ValueError as error:  # of a value, which does not know whose it is
        raise ValueError(str(error) if str(path) in str(error) else f'{path}: {error}') from None


def language_of(family, size, vocabulary):
    """The LanguageConfig of `size` in a family table, of any micro point like 'w96d5', or of a
    published size of another depth: '135m-d15' keeps 15 layers (`downscale import --layers`)."""
    if family not in LANGUAGE:
        raise ValueError(unknown('family', family, list(LANGUAGE)))
    table = LANGUAGE[family]
    pruned = re.fullmatch('(.+)-d([1-9][0-9]{0,5})', size)
    base, depth = (pruned[1], int(pruned[2])) if pruned else (size, None)
    if base in table:
        return scale(table[base], depth=depth, vocabulary=vocabulary or None)
    point = re.fullmatch('w(0|[1-9][0-9]{0,5})d(0|[1-9][0-9]{0,5})', size)
    if family == 'micro' and point:
        return scale(table['w64d2'], int(point[1]), int(point[2]), vocabulary or None)
    raise ValueError(unknown(f'{family} size', size, list(table)))


def cells_of(config, sweep):
    """(experiments of the study, shared tower cells included).

    `config` is the locked ConfigDict of `get_config`; `sweep` lists points (see `sweeps.py`). Every
    cell is checked here, before any work starts.
    """
    value = config.to_dict()
    name = value.pop('study', None)
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w .,+-]{0,99}', name):
        raise ValueError(f'study {shown(name)} must be the name of one folder: letters, digits and '
                         'any of " .,+-", at most 100')
    value.pop('claims', None)  # of the study, not of a cell
    for key, kind in (('family', str), ('vocabulary', int), ('stages', dict)):
        if not isinstance(value.get(key), kind):
            raise ValueError(f'get_config(): {key} {shown(value.get(key))} must be of type '
                             f'{kind.__name__}')
    stages = value['stages']
    for name, settings in stages.items():
        if name not in STAGES:
            raise ValueError(f'stages: {unknown("stage", name, list(STAGES))}')
        if not isinstance(settings, dict):
            raise ValueError(f'stages.{name} must be a mapping, not {shown(settings)}')
    sweeps.check(sweep, stages)
    found = []
    for seed in dict.fromkeys(point['seed'] for point in sweep):
        points = [point for point in sweep if point['seed'] == seed]
        if 'tower' in stages:
            found.append(_cell(value, f'tower-s{seed}', sweeps.shared(points[0]), ['tower']))
        for point in points:
            own = [name for name in point.get('stages', stages) if name != 'tower']
            found.append(_cell(value, sweeps.name_of(point), point, own))
    _check_parents(found)
    return tuple(found)


def _check_parents(cells):
    """Raise ValueError where a stage starts from one that is not before it: it would wait for ever.
    """
    before = set()
    for cell in cells:
        for stage in cell.stages:
            for reference in stage.parents.values():
                name = reference_of(cell, reference)
                if name not in before:
                    known = [place.partition('/')[2] for place in before
                             if place.startswith(f'{cell.name}/')]
                    raise ValueError(f'{cell.name}, stage {stage.name}, parents: '
                                     f'{unknown("stage", reference, known)}')
            before.add(f'{cell.name}/{stage.name}')


def reference_of(cell, reference):
    """'CELL/STAGE' of a parent: 'text' of this cell, or 'tower/tower' of the shared one."""
    other, _, stage = reference.rpartition('/')
    return f'{other}-s{cell.seed}/{stage}' if other else f'{cell.name}/{stage}'


def _cell(value, name, point, stages):
    """The cell of a point, with the named ones of the study's stages."""
    value = sweeps.applied(value, point)
    if 'budget' in value:
        raise ValueError('budget is declared by the points of sweep(), each its own; leave it out '
                         'of get_config()')
    family, vocabulary, made = (value.pop(key) for key in ('family', 'vocabulary', 'stages'))
    language = dataclasses.asdict(language_of(family, point['size'], vocabulary))
    imports = {**value.get('imports', {}), **point.get('imports', {})}
    # A ConfigDict sorts its keys; STAGES holds parents before children.
    full = [{'name': stage, **STAGES[stage], **made[stage]} for stage in STAGES
            if stage in made and stage in stages]
    # An imported group has no parent unless a stage of this study makes it.
    full = [stage | {'parents': {group: parent for group, parent in stage['parents'].items()
                                 if group not in imports or parent.rpartition('/')[2] in made}}
            for stage in full]
    return from_dict(Experiment, {**value, 'name': name, 'size': point['size'],
                                  'seed': point['seed'], 'language': language, 'stages': full,
                                  'imports': imports,
                                  'budget': point.get('budget', '')}, name)


def parent_folder(study, experiment, reference):
    """The folder of a parent stage: 'text' of this cell, or 'tower/tower' of the shared cell."""
    return place(study) / 'cells' / reference_of(experiment, reference)
