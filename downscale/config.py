"""Every knob of a cell, frozen: an `Experiment` and what it holds, without JAX.

Those of its stages are in `stage_config.py`. `load` and `save` move an experiment from and to the
`experiment.json` of a run folder. The way from a study file's ConfigDict to experiments is
`experiment/expansion.py`.
"""
import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

from downscale.data.chat import CHATS, Chat
from downscale.data.scenes.clutter_world import Clutter, check_triples
from downscale.data.scenes.world import World
from downscale.data.templates import Origin, Template
from downscale.data.tokens import Layout
from downscale.moved import attribute
from downscale.results.text_kinds import BRIEF, CAPTION, EXTRACTION, TEXT_KINDS
from downscale.runtime.files import PathLike, place, write_json
from downscale.sizes import LanguageConfig, Parametrisation, Pictures, VisionConfig
from downscale.stage_config import OF_SHRINKING, PARENTED, Stage
from downscale.stage_table import JOINT, STAGES, WRITER
from downscale.values import COUNT, Choice, Range, Several, check, from_dict, hash_of, unknown

REMAT = ('none', 'dots', 'full')  # what a block keeps for the backward pass; see `model/remat.py`
ATTENTION = ('auto', 'xla', 'cudnn', 'splash')  # see `model/attention.py`
LABELS = ('budget', 'label')  # of a cell, which change nothing
TEMPLATE = 'template'  # the chat that came along with an imported language model


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW after clipping by the global norm; `accumulate` micro-batches make one step.

    `first_moment` is the dtype of Adam's mean of gradients; bfloat16 saves 2 bytes a parameter.
    """
    b1: Annotated[float, Range(0, 1, 'share of its mean of gradients that a step keeps',
                               without=(1,))] = 0.9
    b2: Annotated[float, Range(0, 1, 'share of its mean of squares that a step keeps',
                               without=(1,))] = 0.95
    eps: Annotated[float, Range(0, 1, 'what is added to the root of the squares',
                                without=(0,))] = 1e-8
    weight_decay: Annotated[float, Range(0, 10, 'share of a weight that a rate of 1 takes off'
                                         )] = 0.0
    clip: Annotated[float | None, Range(0, 1e12, 'the norm that gradients are cut to; None is no '
                                        'clipping', without=(0,))] = 1.0
    accumulate: Annotated[int, Range(1, 2 ** 20, 'micro-batches of a step')] = 1
    first_moment: Annotated[str, Choice(('float32', 'bfloat16'), 'first_moment')] = 'float32'

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class Data:
    """How many scenes each split holds, and the share of picture triples among them."""
    train: Annotated[int, Range(0, COUNT, 'scenes to train on')] = 0
    validation: Annotated[int, Range(0, COUNT, 'scenes to validate on')] = 0
    test: Annotated[int, Range(0, COUNT, 'scenes to ask about')] = 0
    similarity_share: Annotated[float, Range(0, 1, 'share of picture triples among them')] = 0.1

    def __post_init__(self):
        check(self)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked after training. A process writes at most `batch` rows at once.

    `answer`, `write` and `think` bound an answer, a description and a thought, in tokens.
    `budget` is one of those of a cluttered world: a writer is told so many words, what goes beyond
    is cut behind its last whole record, and so are the true texts.
    `texts` are the kinds of text that reasoners read: 'caption', 'extraction', 'perceived', an
    extraction by the stage 'perceive', and 'brief', a caption cut to the length of the extraction
    that the same model wrote for the question.
    `benchmarks` maps names of published benchmarks, or any name for one's own questions, to their
    files (see `downscale benchmark` and `evaluate/question_files.py`), `images` to the folders of
    their pictures, `information` to files that say what to look at and `scorers` to who judges;
    with any, they take the place of the scenes, and `scenes` is how many questions of each (0:
    all). Without any and with no `scenes`, nothing is asked. With `question_hidden` reasoners also
    read every text without its question, and answer at once: what they have right is in the text.
    """
    scenes: Annotated[int, Range(0, COUNT, 'scenes, or questions of each benchmark')] = 0
    batch: Annotated[int, Range(1, 2 ** 20, 'rows that are written at once')] = 128
    answer: Annotated[int, Range(1, 2 ** 20, 'tokens of an answer at most')] = 8
    write: Annotated[int, Range(1, 2 ** 20, 'tokens of a description at most')] = 64
    think: Annotated[int, Range(0, 2 ** 20, 'tokens of a thought at most')] = 104
    budget: Annotated[int, Range(0, 10_000, 'words of a description; 0 is no budget')] = 0
    conditions: Annotated[
        tuple[Annotated[str, Choice(('image', 'blind', 'shuffled'), 'condition')], ...],
        Several(0, 'what a model that sees is shown')] = ('image', 'blind', 'shuffled')
    texts: Annotated[
        tuple[Annotated[str, Choice(TEXT_KINDS, 'kind')], ...],
        Several(0, 'the kinds of text that reasoners read')] = (CAPTION, EXTRACTION)
    thinking: Annotated[tuple[bool, ...],
                        Several(1, 'whether reasoners think before they answer')] = (False, True)
    pictures: Annotated[int, Range(0, 100_000, 'pictures that the report may show')] = 24
    benchmarks: dict[str, str] = dataclasses.field(default_factory=dict)
    information: dict[str, str] = dataclasses.field(default_factory=dict)
    images: dict[str, str] = dataclasses.field(default_factory=dict)
    scorers: dict[str, str] = dataclasses.field(default_factory=dict)
    question_hidden: bool = False

    def __post_init__(self):
        check(self)
        if self.question_hidden and not (self.texts and False in self.thinking):
            raise ValueError('evaluation.question_hidden has reasoners answer at once from texts '
                             'alone; name `texts`, and False among `thinking`, or leave it out')
        if BRIEF in self.texts and not {CAPTION, EXTRACTION} <= set(self.texts):
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


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A cell: sizes, stages, data, seed and mesh. `size` names the language model.

    `imports` maps groups to the folders of imported models that they start from; paths count from
    where the study is run. An imported model is itself a cell, without stages; it may lack
    `language` (a tower alone) or `vision`. `budget` names the compute that it spends, and `label`
    what it changes. `chat` names a built-in chat, or is 'template': that of the imported language
    model. `attention` is the program of training: 'auto' takes the fastest that fits the device,
    any other is taken or refused. `trained_as` is the cell whose checkpoints this one asks in
    another way, where it trains none of its own; no study sets it. `origin` is of an imported model
    alone.
    """
    name: str
    size: str
    seed: Annotated[int, Range(0, 2 ** 32 - 1, 'seed of the cell')]
    language: LanguageConfig | None
    vision: VisionConfig | None
    world: World | Clutter = World()
    data: Data = Data()
    stages: tuple[Stage, ...] = ()
    evaluation: Evaluation = Evaluation()
    pictures: Pictures = Pictures()
    imports: dict[PARENTED, str] = dataclasses.field(default_factory=dict)
    optimizer: Optimizer = Optimizer()
    parametrisation: Parametrisation = Parametrisation()
    mesh: MeshSize = MeshSize()
    chat: Annotated[str, Choice((*CHATS, TEMPLATE), 'chat')] = 'micro'
    legacy_structural_loss: bool = False
    tokenizer: str = ''
    dtype: Annotated[str, Choice(('float32', 'bfloat16'), 'dtype')] = 'float32'
    remat: Annotated[str, Choice(REMAT, 'remat')] = 'none'
    unroll: Annotated[int, Range(1, 10_000, 'layers in one turn of the loop over layers')] = 1
    attention: Annotated[str, Choice(ATTENTION, 'attention')] = 'auto'
    budget: str = ''
    label: str = ''
    trained_as: str = ''
    origin: Origin | None = None

    def __post_init__(self):
        check(self)
        check_triples(self.world, self.data.similarity_share)
        self._check_budget()
        self._check_chat()
        self._check_parametrisation()
        for stage in self.stages:
            # An imported cell may lack a model: said here, and not as an error of shapes later.
            sees = stage.tiles or stage.kind.rows == 'captioned'
            lacks = 'vision' if self.vision is None and sees else None
            if self.language is None:
                lacks = 'language'
            if lacks:
                raise ValueError(f'stage {stage.name} needs a model that the cell does not have: '
                                 f'its {lacks} is None')
            stage.check_chat(self.chat)
        most = self.optimizer.accumulate
        for stage in self.stages:
            # Every bucket is a program of its own, and each is divided into the same micro-batches.
            for batch in (shape.batch for shape in stage.shapes):
                if batch % most:
                    raise ValueError(f'stage {stage.name}: batch {batch} does not divide into '
                                     f'{most} micro-batches ({batch} % {most} = {batch % most})')

    def _check_budget(self):
        budget = self.evaluation.budget
        known = self.world.budgets if isinstance(self.world, Clutter) else ()
        if budget and (self.evaluation.benchmarks or budget not in known):
            raise ValueError(f'evaluation.budget {budget} is none of the budgets that writers of '
                             f'this world are trained under: {list(known) or "it has none"}')

    def _check_chat(self):
        if self.chat == TEMPLATE:
            # An import's own cell holds its template; any other cell must import one.
            if self.origin is None and 'language' not in self.imports:
                raise ValueError(f'chat {TEMPLATE!r} is that of an imported language model; give '
                                 f'`imports` one, or a built-in chat of {sorted(CHATS)}')
            if self.legacy_structural_loss:
                raise ValueError('legacy_structural_loss learns the headers of a built-in chat; '
                                 f'leave it out where chat is {TEMPLATE!r}')

    def _check_parametrisation(self):
        if self.parametrisation != Parametrisation():
            # muP scales the values of a random start; a tower has one size and no part in it.
            given = sorted(set(self.imports) - {'tower'})
            if given or self.language is None:
                raise ValueError('a parametrisation is for language models that start from random '
                                 f'values, not for imports of {given}; leave it out and choose the '
                                 'rate of each size')
            if 'shrink' in [stage.name for stage in self.stages]:
                raise ValueError('a cell that is shrunk computes as standard, with what muP '
                                 'multiplies by in its weights; leave out its parametrisation')
            assert self.parametrisation.growth(self.language)  # for its own check

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`; ValueError naming the nearest."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(unknown('stage', name, [stage.name for stage in self.stages]))

    @property
    def joint_stage(self) -> str | None:
        """The stage that answers with the picture, the last of instruction tuning; None without."""
        names = [stage.name for stage in self.stages]
        return next((name for name in JOINT if name in names), None)

    @property
    def is_shared(self) -> bool:
        """Whether the cell is that of the tower, which all sizes of a seed share."""
        return bool(self.stages) and all(stage.kind.shared for stage in self.stages)

    def writer_stage(self, kind: str) -> str | None:
        """Return the stage that writes texts of a `kind`; None without.

        It is the one tuned for it, or where published data has none the one that answers.
        """
        if WRITER[kind] in [stage.name for stage in self.stages]:
            return WRITER[kind]
        return self.joint_stage if self.evaluation.benchmarks else None

    def model(self, stage: str = 'instruct') -> Any:
        """Return the module of a stage: an old name, in notebooks, of `stages.models.model_of`."""
        return attribute('experiment', 'model_of')(self, stage)

    def layout(self, stage: str) -> Layout:
        """Return how a stage, or another reader such as 'run', cuts pictures into tiles."""
        kind = STAGES.get(stage)
        # A flat picture has no newline, so such a stage has no vector for one (`Layout.newline`).
        if kind is not None and kind.layout == 'flat':
            return Layout(self.vision, dataclasses.replace(self.pictures, mode='flat'))
        return Layout(self.vision, self.pictures)

    def chat_of(self, stage: str) -> Chat | Template:
        """Return the format of a stage's conversations."""
        if self.chat == TEMPLATE:
            if not self.published.template:
                raise ValueError(f'{self.name}: chat is {TEMPLATE!r}, but the imported language '
                                 f'model brought none; choose one of {sorted(CHATS)}')
            return self.published.chat
        kind = STAGES.get(stage)
        # There ChatML gives way to captions alone: nothing is asked, so there are no roles to mark.
        bare = self.chat == 'chatml' and kind is not None and kind.chat == 'bare'
        name = 'plain' if bare else self.chat
        return dataclasses.replace(CHATS[name], legacy_structural_loss=self.legacy_structural_loss)

    @property
    def published(self) -> Origin:
        """The `Origin` of the language model, its own or that of its import."""
        # An import may itself have been trained from one: follow it to the published model.
        if self.origin is not None or 'language' not in self.imports:
            return self.origin or Origin()
        return load(self.imports['language']).published

    @property
    def asks(self) -> bool:
        """Whether anything is asked of this cell, about scenes or from benchmarks."""
        return bool(self.evaluation.benchmarks) or self.evaluation.scenes > 0

    @property
    def hash(self) -> str:
        """A short hash of everything in this cell but its labels."""
        # Fields that came later are left out at their old meaning: finished runs keep their hash.
        value = {key: part for key, part in _stored(self).items() if key not in LABELS}
        if not self.evaluation.scorers:
            del value['evaluation']['scorers']  # as with parametrisation
        if self.parametrisation == Parametrisation():
            del value['parametrisation']  # runs from before there was a choice keep their hash
        return hash_of(value)


def _stored(experiment):
    """Return a cell as plain values; fields that came later are left out at their old meaning."""
    value = dataclasses.asdict(experiment) | {'world': experiment.world.declared()}
    for key, old in dict(trained_as='', origin=None, attention='auto', label='').items():
        if value[key] == old:  # a checkpoint's fingerprint covers the rest
            del value[key]
    for key in ('budget', 'question_hidden'):
        if not value['evaluation'][key]:
            del value['evaluation'][key]
    for stage in value['stages']:
        for key in ('blind', 'decay', 'forks', 'trunk'):
            if not stage[key]:
                del stage[key]
        if STAGES[stage['name']].rows != 'written':
            del stage['policy']
        elif not stage['policy']['scrambled']:
            del stage['policy']['scrambled']
        if not stage['teacher']:
            del stage['teacher'], stage['distil']
        if STAGES[stage['name']].loss != 'none':
            for key in OF_SHRINKING:
                del stage[key]
    return value


def save(experiment: Experiment, folder: PathLike) -> None:
    """Write `folder/experiment.json`."""
    write_json(place(folder) / 'experiment.json', _stored(experiment))


def load(folder: PathLike) -> Experiment:
    """Return the experiment of a run folder.

    FileNotFoundError or ValueError in one line when its file is missing or damaged.
    """
    path = place(folder) / 'experiment.json'
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; is {folder} a run folder?')
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}); delete it and run the stage '
                         'again') from None
    # Files of earlier versions are read as what they meant then.
    if isinstance(value, dict) and isinstance(value.get('evaluation'), dict):
        value['evaluation'].pop('length', None)  # of runs from before prompts had any length
    if isinstance(value, dict) and isinstance(value.get('remat'), bool):  # before it had a name
        value['remat'] = 'full' if value['remat'] else 'none'
    try:
        return from_dict(Experiment, value, str(path))
    except ValueError as error:  # of a value, which does not know whose it is
        raise ValueError(str(error) if str(path) in str(error) else f'{path}: {error}') from None
