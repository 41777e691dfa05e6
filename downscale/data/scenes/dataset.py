"""The made-up world on disk: a TFDS data set in ArrayRecord, written and read without TensorFlow.

One record is a scene graph with its pictures, caption and questions, as in TFDS `clevr`. Pictures
are a sequence of `features.Image`, written as the PNG bytes that `render` made and read back with
SkipDecoding, so they are never recompressed. A data set's folder name holds a hash of the world and
of what was asked of it, so another world never reads stale data.
"""
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from downscale.data.records import Example, Extraction, Question, Trace
from downscale.data.scenes.clutter_world import check_triples
from downscale.data.scenes.kinds import AnyWorld, kind_of, render
from downscale.data.scenes.questions import caption_of, similarity_question
from downscale.data.scenes.world import Object, Scene, World, stream, triple
from downscale.runtime.files import held, write_json

BASELINE_EXAMPLES = 2000  # of each split; reading more would cost as much as building
_SEPARATOR = '\n'  # between distractors: a sequence within a sequence needs TensorFlow to read


@dataclasses.dataclass(kw_only=True)
class _Config(tfds.core.BuilderConfig):
    world: AnyWorld | None = None
    counts: tuple[tuple[str, int], ...] = ()
    similarity_share: float = 0.0
    progress: Callable[[int, int], None] | None = None


class SceneWorld(tfds.core.GeneratorBasedBuilder):
    """Scenes, triples of pictures and their questions. Made by `build`, read by `source`."""
    VERSION = tfds.core.Version('1.2.0')
    # TFDS 4.9.10 looks here for checksums of downloads, of which there are none, and in doing so
    # imports importlib_resources, which it does not install.
    code_path = None
    _log_download_bytes = _log_download_done = lambda self: None  # these print

    def _info(self):
        """Return what TFDS writes into `features.json`; a change asks for another VERSION."""
        text = tfds.features.Text()
        number = tfds.features.Scalar(np.int32)
        image = tfds.features.Image(shape=(None, None, 3), encoding_format='png')
        thing = {'picture': number, 'shape': text, 'color': text, 'size': text, 'char': text,
                 'cell': text, 'box': tfds.features.Tensor(shape=(4,), dtype=np.int32)}
        question = {**dict.fromkeys(_TEXTS, text), 'chance': tfds.features.Scalar(np.float32)}
        sequence = tfds.features.Sequence
        return self.dataset_info_from_configs(
            description='Scenes of coloured shapes with questions, extractions and traces.',
            features=tfds.features.FeaturesDict({
                'scene_id': text, 'caption': text, 'images': sequence(image),
                'backgrounds': sequence(number), 'objects': sequence(thing),
                'questions': sequence(question)}))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, n) for split, n in self.builder_config.counts}

    def _generate_examples(self, split, n):
        """Yield (key, features) of the `n` examples of a split."""
        config = self.builder_config
        total = sum(count for _, count in config.counts)
        # `counts` are sorted by name, and so the splits are built in this order.
        before = sum(count for name, count in config.counts if name < split)
        # Triples come first; each kind is numbered from 0.
        n_triples = round(n * config.similarity_share)
        for i in range(n):
            of_three = i < n_triples
            number = i if of_three else i - n_triples
            example, scenes = example_of(config.world, split, number, of_three)
            yield example.scene_id, _to_features(example, scenes)
            if config.progress:
                config.progress(before + i + 1, total)


_TEXTS = ('item_id', 'cluster_id', 'family', 'kind', 'text', 'answer', 'distractors',
          'information', 'extraction', 'trace', 'scan')


# --- making -----------------------------------------------------------------------------------

def scene_example(world: AnyWorld, split: str,
                  index: int) -> tuple[Example, tuple[Scene, ...]]:
    """Return one picture with one question of each of the world's families that it allows."""
    kind = kind_of(world)
    scene = kind.sample(world, split, index)
    rng = stream(world, 'questions', split, index)
    questions = kind.questions_for(world, scene, rng, world.families)
    return _example(world, (scene,), questions)


def triple_example(world: World, split: str, index: int) -> tuple[Example, tuple[Scene, ...]]:
    """Return three pictures with the question which of two is more like the first."""
    scenes = triple(world, split, index)
    rng = stream(world, 'similarity', split, index)
    return _example(world, scenes, (similarity_question(world, scenes, rng),))


def example_of(world: AnyWorld, split: str, index: int,
               of_three: bool) -> tuple[Example, tuple[Scene, ...]]:
    """Return a `triple_example`, where the world has such, or a `scene_example`."""
    if of_three and isinstance(world, World):
        return triple_example(world, split, index)
    return scene_example(world, split, index)


def _example(world, scenes, questions):
    """Return the `Example` of pictures of `scenes`, and the scenes."""
    images = tuple(render(world, scene) for scene in scenes)
    example = Example(scene_id=scenes[0].scene_id, images=images, caption=caption_of(scenes),
                      questions=questions)
    return example, scenes


def build(world: AnyWorld, data_dir: str | Path, counts: Mapping[str, int],
          similarity_share: float = 0.1,
          progress: Callable[[int, int], None] | None = None) -> Path:
    """Build a data set where it is not there yet, and return its folder.

    `counts` names examples per split, of which `similarity_share` are triples of pictures.
    A killed build leaves only a temporary folder and is redone. `progress(done, total)` is called
    after each example. `world.json` and `baselines.json` stand beside the records.
    """
    builder, asked = _builder(world, data_dir, counts, similarity_share, progress)
    folder = Path(builder.data_dir)
    if not (folder / 'baselines.json').exists():
        with held(Path(data_dir)):  # of two commands on a fresh folder one builds
            builder.download_and_prepare()
            write_json(folder / 'world.json', asked)
            write_json(folder / 'baselines.json', _baselines(world, folder, counts))
    return folder


def folder_of(world: AnyWorld, data_dir: str | Path, counts: Mapping[str, int],
              similarity_share: float = 0.1) -> Path:
    """Return the folder of what `build` makes of the same arguments, built or not."""
    return Path(_builder(world, data_dir, counts, similarity_share)[0].data_dir)


def _builder(world, data_dir, counts, similarity_share, progress=None):
    """Return (TFDS builder, what `world.json` says); ValueError for what cannot be built."""
    if not 0 <= similarity_share <= 1 or not counts or min(counts.values()) < 1:
        raise ValueError(f'need counts >= 1 and 0 <= similarity_share <= 1, '
                         f'got {dict(counts)} and {similarity_share}')
    check_triples(world, similarity_share)
    asked = {'world': world.declared(), 'counts': dict(sorted(counts.items())),
             'similarity_share': similarity_share}
    digest = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=6).hexdigest()
    # pyrefly: ignore[unexpected-keyword]
    config = _Config(name=f'world_{digest}', version=world.version, world=world,
                     counts=tuple(sorted(counts.items())), similarity_share=similarity_share,
                     progress=progress)
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # a configuration that is not listed in the class warns
    builder = SceneWorld(data_dir=str(data_dir), config=config, file_format='array_record')
    logging.set_verbosity(verbosity)
    return builder, asked


def _baselines(world, folder, counts):
    """Return {split: the kind's `baselines` of its first examples}."""
    result = {}
    for split in counts:
        examples = source(folder, split)
        n = min(len(examples), BASELINE_EXAMPLES)
        result[split] = kind_of(world).baselines(world, (examples[i] for i in range(n)))
    return result


def _to_features(example, scenes):
    """Return an example as TFDS writes it; `SceneSource` reads it back."""
    objects = []
    for picture, scene in enumerate(scenes):
        objects += [{'picture': picture, **dataclasses.asdict(obj)} for obj in scene.objects]
    return {
        'scene_id': example.scene_id, 'caption': example.caption,
        'images': [io.BytesIO(png) for png in example.images],
        'backgrounds': [scene.background for scene in scenes],
        'objects': objects, 'questions': list(map(_question_fields, example.questions))}


def _question_fields(question):
    """Return the fields of a question in a record, whose inverse is `_question`."""
    extraction = question.extraction
    plain = {name: vars(question)[name] for name in
             ('item_id', 'cluster_id', 'family', 'kind', 'text', 'answer')}
    return plain | {
        'distractors': _SEPARATOR.join(question.distractors),
        'information': extraction.information, 'extraction': extraction.text,
        'trace': question.trace.text, 'scan': question.trace.scan, 'chance': question.chance}


# --- reading ----------------------------------------------------------------------------------

class _EncodedImages(tfds.decode.SkipDecoding):
    """SkipDecoding for a sequence of images, which TFDS 4.9.10 lacks outside TensorFlow."""

    def decode_batch_example_np(self, encoded):
        return encoded


class SceneSource:
    """Random access to the examples of one split; picklable, opened on first use."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self._records = None
        self._last = None, None

    def __getstate__(self):
        return {'folder': self.folder, 'split': self.split, '_records': None,
                '_last': (None, None)}

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> Example:
        """Return example `index`; ValueError that names the scene when a picture is damaged."""
        features = self._read(index)
        scene_id = features['scene_id'].decode()
        images = tuple(bytes(png) for png in features['images'])
        for png in images:
            _check_png(png, f'{scene_id} in {self.folder}')
        return Example(
            scene_id=scene_id,
            images=images,
            caption=features['caption'].decode(),
            questions=tuple(_question(fields) for fields in _rows(features['questions'])),
        )

    def scenes(self, index: int) -> tuple[Scene, ...]:
        """Return the scene graph of each picture of example `index`."""
        # TFDS holds the objects of all pictures in one list.
        features = self._read(index)
        objects = [[] for _ in features['backgrounds']]
        for row in _rows(features['objects']):
            box = tuple(int(edge) for edge in row.pop('box'))
            objects[int(row.pop('picture'))].append(
                # pyrefly: ignore[bad-argument-type]
                Object(**{name: value.decode() for name, value in row.items()}, box=box))
        scene_id = features['scene_id'].decode()
        return tuple(Scene(scene_id, tuple(things), int(shade)) for things, shade
                     in zip(objects, features['backgrounds'], strict=True))

    def scene(self, index: int) -> Scene:
        """Return the scene graph of the first picture of example `index`."""
        return self.scenes(index)[0]

    def _open(self):
        if self._records is None:
            builder = tfds.builder_from_directory(str(self.folder))
            self._records = builder.as_data_source(
                self.split, decoders={'images': _EncodedImages()})
        return self._records

    def _read(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(f'example {index} of {len(self)} in {self.split} of {self.folder}')
        # Remembered: the pictures of an example and its scene graphs are asked for one by one.
        last, features = self._last
        if last != index:
            features = self._open()[index % len(self)]
            self._last = index, features
        return features


def source(data_dir: str | Path, split: str) -> SceneSource:
    """Return the examples of `split` in the folder of `build`.

    TFDS slices such as 'train[:50%]' work as well.
    """
    folder = Path(data_dir)
    if not (folder / 'dataset_info.json').exists():
        raise FileNotFoundError(f'no data set in {folder}: make one with '
                                'downscale.data.scenes.dataset.build(world, data_dir, counts)')
    return SceneSource(folder, split)


def _rows(columns):
    """Return the dicts of a TFDS sequence of dicts, which is read as a dict of lists."""
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _question(fields):
    """Return the `Question` of the fields of a record."""
    chance = round(float(fields.pop('chance')), 6)  # as written, not its nearest float32
    texts = {name: value.decode() for name, value in fields.items()}
    extraction = Extraction(texts.pop('information'), texts.pop('extraction'))
    distractors = tuple(texts.pop('distractors').split(_SEPARATOR))
    trace = Trace(texts.pop('trace'), texts.pop('scan'))
    return Question(**texts, distractors=distractors, chance=chance, extraction=extraction,
                    trace=trace)


def _check_png(png, where):
    """Raise ValueError where a PNG is damaged."""
    try:
        with Image.open(io.BytesIO(png)) as image:
            image.verify()
    except Exception as error:  # Pillow raises five kinds for damaged files
        raise ValueError(f'damaged picture of {where} ({error}): delete that folder and build it '
                         'again') from error
