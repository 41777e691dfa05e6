"""The model that a stage of a cell trains."""
from downscale.config import Experiment
from downscale.model.tower_words import WordModel
from downscale.model.vision import Tower
from downscale.model.vlm import Vlm
from downscale.stage_table import STAGES

Model = Vlm | WordModel | Tower


def model_of(experiment: Experiment, stage: str = 'instruct') -> Model:
    """Return the module that a stage trains; that of an imported tower alone is a `Tower`."""
    if experiment.language is None:
        # pyrefly: ignore[bad-argument-type]
        return Tower(experiment.vision, dtype=experiment.dtype, unroll=experiment.unroll)
    if stage in STAGES and STAGES[stage].loss == 'words':
        # pyrefly: ignore[bad-argument-type]
        return WordModel(experiment.vision, experiment.language.V, unroll=experiment.unroll)
    # pyrefly: ignore[bad-argument-type]
    return Vlm(experiment.language, experiment.vision, dtype=experiment.dtype,
               remat=experiment.remat, unroll=experiment.unroll,
               newline=experiment.layout(stage).newline,
               growth=experiment.parametrisation.growth(experiment.language))


def groups_of(model: Vlm, sees: bool) -> tuple[str, ...]:
    """Return the groups of parameters that a model needs, for text alone unless it `sees`."""
    if not sees:
        return ('language',)
    newline = ('image_newline_D',) if model.newline else ()
    return ('language', 'tower', 'connector', *newline)
