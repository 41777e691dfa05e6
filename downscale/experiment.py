"""One cell: a frozen `Experiment`, and the way from a ConfigDict or JSON to it.

A study file gives `get_config(arg)` and `sweep()`. `cells(config, sweep)` turns them into
experiments; `load` and `save` move one to and from `experiment.json`. Nothing below this module
sees a ConfigDict.
"""
import dataclasses
import hashlib
import json
from dataclasses import dataclass

from downscale import sweeps
from downscale.data.buckets import Shape, in_order
from downscale.data.chat import CHATS
from downscale.data.pipeline import Recipe
from downscale.data.scenes import World
from downscale.data.templates import Origin
from downscale.data.tokens import Layout
from downscale.model.remat import POLICIES
from downscale.model.vlm import Vlm
from downscale.model.words import WordModel
from downscale.mup import Parametrisation
from downscale.places import place, write_json
from downscale.sizes import LANGUAGE, LanguageConfig, Pictures, VisionConfig, scale
from downscale.strict import from_dict, unknown
from downscale.train.optimizer import GROUPS, Optimizer, Schedule

_ALL = ('language', 'tower', 'connector')
_FROM_INSTRUCT = (*_ALL, 'image_newline_D')
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
    name: str
    steps: int
    batch: int
    length: int
    tiles: int
    rates: dict[str, float]
    trainable: tuple[str, ...]
    parents: dict[str, str]
    warmup: float = 0.05
    final: float = 0.1
    replay: dict[str, float] = dataclasses.field(default_factory=dict)
    loss_norm: str = 'token'
    turns: int = 6
    save_every: int = 200
    buckets: tuple[Shape, ...] = ()
    mixture: str = ''

    def __post_init__(self):
        if self.name not in STAGES:
            raise ValueError(f'unknown stage {self.name!r}; known are {", ".join(STAGES)}')
        lacking = sorted(set(self.trainable) - set(self.rates))
        if lacking:
            raise ValueError(f'stage {self.name} trains {lacking} without a rate in `rates`')
        if self.steps < 1 or self.save_every < 1:
            raise ValueError(f'stage {self.name}: steps {self.steps} and save_every '
                             f'{self.save_every} must be at least 1')
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
    train: int = 0
    validation: int = 0
    test: int = 0
    similarity_share: float = 0.1


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
    scenes: int = 0
    batch: int = 128
    answer: int = 8
    write: int = 64
    think: int = 104
    conditions: tuple[str, ...] = ('image', 'blind', 'shuffled')
    texts: tuple[str, ...] = ('caption', 'extraction')
    thinking: tuple[bool, ...] = (False, True)
    pictures: int = 24
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)
    information: dict[str, str] = dataclasses.field(default_factory=dict)
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    scorers: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for kind in self.texts:
            if kind not in (*WRITER, BRIEF):
                raise ValueError(f'evaluation.texts: {unknown("kind", kind, [*WRITER, BRIEF])}')
        if BRIEF in self.texts and not set(WRITER) <= set(self.texts):
            raise ValueError(f'evaluation.texts: {BRIEF!r} is cut from a caption to the length of '
                             'an extraction; ask for both as well')


@dataclass(frozen=True)
class MeshSize:
    """Devices along each mesh axis; -1 takes what is left."""
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


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
    seed: int
    language: LanguageConfig | None
    vision: VisionConfig | None
    world: World = World()
    data: Data = Data()
    stages: tuple[Stage, ...] = ()
    evaluation: Evaluation = Evaluation()
    pictures: Pictures = Pictures()
    imports: dict[str, str] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = Optimizer()
    parametrisation: Parametrisation = Parametrisation()
    mesh: MeshSize = MeshSize()
    chat: str = 'micro'
    legacy_structural_loss: bool = False
    tokenizer: str = ''
    dtype: str = 'float32'
    remat: str = 'none'
    unroll: int = 1
    budget: str = ''
    origin: Origin | None = None

    def __post_init__(self):
        if self.chat not in (*CHATS, TEMPLATE):
            raise ValueError(f'unknown chat {self.chat!r}; known are {sorted([*CHATS, TEMPLATE])}')
        if self.chat == TEMPLATE:
            if self.origin is None and 'language' not in self.imports:
                raise ValueError(f'chat {TEMPLATE!r} is that of an imported language model; give '
                                 f'`imports` one, or a built-in chat of {sorted(CHATS)}')
            if self.legacy_structural_loss:
                raise ValueError('legacy_structural_loss learns the headers of a built-in chat; '
                                 f'leave it out where chat is {TEMPLATE!r}')
        foreign = sorted(set(self.imports) - {*_ALL, 'image_newline_D'})
        if foreign:
            raise ValueError(f'imports: {unknown("group", foreign[0], [*_ALL])}')
        if self.dtype not in ('float32', 'bfloat16'):
            raise ValueError(f"dtype {self.dtype!r} must be 'float32' or 'bfloat16'")
        if self.remat not in POLICIES:
            raise ValueError(unknown('remat', self.remat, list(POLICIES)))
        self._check_parametrisation()
        most = self.optimizer.accumulate
        for stage in self.stages:
            for batch in (shape.batch for shape in stage.shapes):
                if batch % most:
                    raise ValueError(f'stage {stage.name}: batch {batch} does not divide into '
                                     f'{most} micro-batches ({batch} % {most} = {batch % most})')

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
    return from_dict(Experiment, value, str(path))


def language_of(family, size, vocabulary):
    """The LanguageConfig of `size` in a family table, of any micro point like 'w96d5', or of a
    published size of another depth: '135m-d15' keeps 15 layers (`downscale import --layers`)."""
    if family not in LANGUAGE:
        raise ValueError(unknown('family', family, list(LANGUAGE)))
    table = LANGUAGE[family]
    base, _, depth = size.partition('-d')
    if base in table and (depth.isdigit() or size == base):
        return scale(table[base], depth=int(depth) if depth else None,
                     vocabulary=vocabulary or None)
    width, _, depth = size.removeprefix('w').partition('d')
    if family == 'micro' and size.startswith('w') and width.isdigit() and depth.isdigit():
        return scale(table['w64d2'], int(width), int(depth), vocabulary or None)
    raise ValueError(unknown(f'{family} size', size, list(table)))


def cells(config, sweep):
    """(experiments of the study, shared tower cells included).

    `config` is the locked ConfigDict of `get_config`; `sweep` lists points (see `sweeps.py`). Every
    cell is checked here, before any work starts.
    """
    value = config.to_dict()
    value.pop('study')
    value.pop('claims', None)  # of the study, not of a cell
    stages = value['stages']
    for name in stages:
        if name not in STAGES:
            raise ValueError(f'stages: {unknown("stage", name, list(STAGES))}')
    sweeps.check(sweep, stages)
    found = []
    for seed in dict.fromkeys(point['seed'] for point in sweep):
        points = [point for point in sweep if point['seed'] == seed]
        if 'tower' in stages:
            found.append(_cell(value, f'tower-s{seed}', sweeps.shared(points[0]), ['tower']))
        for point in points:
            own = [name for name in point.get('stages', stages) if name != 'tower']
            found.append(_cell(value, sweeps.name_of(point), point, own))
    return tuple(found)


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
    cell, _, stage = reference.rpartition('/')
    name = f'{cell}-s{experiment.seed}' if cell else experiment.name
    return place(study) / 'cells' / name / stage
