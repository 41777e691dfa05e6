"""How a folder wants pictures prepared, and whether that is what is done here."""
from pathlib import Path

from downscale.convert.shards import read_object
from downscale.convert.side_files import named, short
from downscale.sizes import Pictures, VisionConfig

# Steps of a preprocessor_config.json: {key: whether it is done here, to every picture}.
_DONE = {'do_resize': True, 'do_rescale': True, 'do_normalize': True, 'do_center_crop': False}
_READ = {'image_mean', 'image_std', 'rescale_factor', 'resample', 'size', 'crop_size',
         'image_grid_pinpoints', 'do_pad', *_DONE}
_NEUTRAL = {'processor_class', 'image_processor_type', 'feature_extractor_type', 'do_convert_rgb',
            'data_format', 'input_data_format', 'default_to_square', 'device', 'disable_grouping',
            'return_tensors', 'do_pad', 'pad_size', 'image_seq_length', '_valid_processor_keys'}


def check_pictures(folder: Path, vision: VisionConfig, pictures: Pictures | None) -> list[str]:
    """Return notes on what is not used of the folder's settings for pictures.

    ValueError names the first setting that would prepare them otherwise than it is done here. A
    tower sees pixels from -1 to 1, of its own size, resampled bicubically.
    """
    folder = Path(folder)
    notes = []
    for name in ('preprocessor_config.json', 'processor_config.json'):
        values = read_object(folder / name)
        # There the settings of pictures are one part among several.
        if name == 'processor_config.json':
            values = values.get('image_processor') or {}
        if values:
            _check_processor(name, values, vision, pictures)
            unused = values.keys() - _READ - _NEUTRAL
            if unused:
                notes.append(f'{name}: not used: {named(unused)}')
    return notes


def _check_processor(name, values, vision, pictures):
    """Raise ValueError unless the settings `values` of the file `name` are what is done here."""
    # Left out, means and deviations are those of the class, which are ours for Siglip alone.
    kind = str(values.get('image_processor_type', ''))
    silent = [0.5] * 3 if kind.startswith('Siglip') or not kind else 'of its class'

    def refuse(key, wanted, value=None):
        """Raise ValueError that says what `key` is here."""
        value = values.get(key) if value is None else value
        raise ValueError(f'{name}: {key} {short(value)} is not implemented; here it is {wanted}')

    for key in ('image_mean', 'image_std'):
        given = values.get(key, silent)
        given = [given] * 3 if isinstance(given, (int, float)) else given
        if not _near(given, [0.5] * 3):
            refuse(key, '0.5 for each colour', given)
    if not _near([values.get('rescale_factor', 1 / 255)], [1 / 255]):
        refuse('rescale_factor', '1/255')
    if values.get('resample', 3) not in (3, 'bicubic', None):
        refuse('resample', '3 (bicubic)')
    for key, wanted in _DONE.items():
        if values.get(key) not in (None, wanted):
            refuse(key, wanted)
    size = values.get('size')
    sides = [size] * 2
    if isinstance(size, dict) and set(size) == {'height', 'width'}:
        sides = list(size.values())
    if size is not None and sides != [vision.image] * 2:
        refuse('size', f'{vision.image} by {vision.image}')
    points = values.get('image_grid_pinpoints')
    # Both files may list the grids: any order, but the same ones.
    if pictures and pictures.mode == 'anyres' and points:
        ours = [[y * vision.image, x * vision.image] for x, y in pictures.grids]
        if not isinstance(points, list) or sorted(map(str, points)) != sorted(map(str, ours)):
            refuse('image_grid_pinpoints', 'those of config.json')


def _near(values, wanted):
    """Return whether `values` is a list of the numbers `wanted`, but for rounding."""
    return isinstance(values, list) and len(values) == len(wanted) and all(
        isinstance(value, (int, float)) and abs(value - goal) < 1e-6
        for value, goal in zip(values, wanted))
