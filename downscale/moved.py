"""Old import paths, for the study files, mixtures and notebooks that people wrote with them.

They are those of before the package was laid out anew.
`import downscale.places` gives the module that holds its names now, with a DeprecationWarning.
Nothing in the package imports by these paths (`tests/house/test_moved.py`).
`config.Experiment.model` is kept in the same way.
"""
import importlib
import types
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path

# Old path: where its names are now, searched in this order.
MOVED = {
    'analysis.attentive': 'probe.attentive',
    'analysis.attribution': 'statistics.shapley',
    'analysis.checkpoints': 'probe.checkpoints',
    'analysis.cka': 'statistics.similarity',
    'analysis.claim_sections': 'report.claim_sections',
    'analysis.descent': 'laws.huber_loss',
    'analysis.doubts': 'laws.doubts',
    'analysis.dropoff': 'analysis.drops',
    'analysis.extrapolation': 'laws.extrapolation',
    'analysis.figures': 'report.figures',
    'analysis.files': 'results.study_file',
    'analysis.fit_command': 'commands.analyze_fit',
    'analysis.fits': 'laws.fits',
    'analysis.gallery': 'report.gallery',
    'analysis.inference': 'statistics.inference',
    'analysis.isoflop': 'laws.isoflop',
    'analysis.law_figures': 'report.law_figures',
    'analysis.law_sections': 'report.law_sections',
    'analysis.laws': 'laws.forms',
    'analysis.lr': 'laws.learning_rates',
    'analysis.measure_command': 'commands.analyze_measures',
    'analysis.page': 'output.page',
    'analysis.passes': 'probe.passes',
    'analysis.probe': 'probe.probe',
    'analysis.probe_command': 'commands.analyze_probes',
    'analysis.probe_figures': 'report.probe_figures',
    'analysis.probe_tables': 'results.probes',
    'analysis.readout': 'probe.readout',
    'analysis.report': 'report.report',
    'analysis.sections': 'report.sections',
    'analysis.share_figures': 'report.share_figures',
    'analysis.shares': 'analysis.flips',
    'analysis.stats': 'statistics.bootstrap statistics.inference',
    'analysis.synthetic': 'analysis.planted.study',
    'analysis.synthetic_files': 'analysis.planted.files',
    'analysis.tables': 'results.study',
    'analysis.throughput': 'results.throughput',
    'analyze_command': 'commands.analyze',
    'cli': 'commands.main',
    'console': 'runtime.progress',
    'corpus_page': 'data.corpora.page',
    'curves': 'results.curves',
    'data.build': 'data.corpora.build',
    'data.columns': 'data.corpora.columns data.corpora.options data.corpora.cells',
    'data.corpus': 'data.corpora.mixture',
    'data.corpus_stream': 'data.corpora.sampler',
    'data.facts': 'data.scenes.facts',
    'data.mixture': 'data.scenes.conversations',
    'data.questions': 'data.scenes.questions data.scenes.question_families data.scenes.facts',
    'data.scenes': 'data.scenes.world data.scenes.drawing',
    'data.shards': 'data.corpora.shards data.corpora.build_settings',
    'data.sources': 'data.corpora.sources',
    'data.tables': 'data.corpora.tables',
    'data.world_builder': 'data.scenes.dataset',
    'data_command': 'commands.data',
    'distributed': 'runtime.processes',
    'evaluate.benchmark_command': 'commands.benchmark',
    'evaluate.boxes': 'evaluate.scoring.boxes',
    'evaluate.choices': 'evaluate.scoring.choices',
    'evaluate.command': 'commands.extract_think',
    'evaluate.fingerprint': 'stages.fingerprint',
    'evaluate.intervals': 'evaluate.scoring.macro',
    'evaluate.items': 'results.items',
    'evaluate.named': 'evaluate.scoring.table evaluate.scoring.targets',
    'evaluate.reading': 'evaluate.scoring.reading',
    'evaluate.rescore': 'evaluate.scoring.rescore evaluate.scoring.stored_replies',
    'evaluate.sample_files': 'evaluate.scoring.sample_files',
    'evaluate.samples': 'results.samples',
    'evaluate.scorers': 'evaluate.scoring.option_letters',
    'evaluate.scoring_command': 'commands.rescore',
    'evaluate.statements': 'evaluate.scoring.statements',
    'evaluate.vqa': 'evaluate.scoring.vqa',
    'evaluate.words': 'evaluate.scoring.short_answers evaluate.scoring.yes_no',
    'exchange': 'convert.exchange',
    'exits': 'runtime.exits',
    'experiment': 'config experiment.expansion stages.models',
    'factory.command': 'commands.data_extract',
    'launch.arguments': 'commands.launch',
    'launch.bounds': 'planner.bounds',
    'launch.command': 'commands.launch_verbs',
    'launch.fit': 'planner.fit',
    'launch.hardware': 'planner.hardware',
    'launch.hlo': 'planner.hlo',
    'launch.jobset': 'launch.backends.gke',
    'launch.kueue': 'launch.backends.kueue',
    'launch.local': 'launch.backends.local',
    'launch.nearest': 'planner.nearest',
    'launch.plan': 'planner.plan',
    'launch.pool': 'planner.pool',
    'launch.programs': 'planner.programs',
    'launch.queued': 'launch.backends.tpuvm',
    'launch.sweep': 'launch.backends.sweep launch.backends.settings',
    'launch.table': 'planner.table',
    'launch.topologies': 'planner.topologies',
    'launch.validate': 'launch.backends.validate',
    'launch.worker': 'planner.worker',
    'loading': 'stages.loading',
    'memory': 'runtime.memory',
    'model.words': 'model.tower_words',
    'names': 'experiment.names',
    'outputs': 'runtime.outputs',
    'padding': 'stages.padding',
    'parity': 'convert.parity',
    'parsing': 'commands.parsing',
    'peers': 'runtime.peers',
    'places': 'runtime.files',
    'recipe': 'experiment.recipe',
    'stages': 'stages.training stages.inputs stages.folders stages.start stages.models',
    'start': 'runtime.setup',
    'streams': 'runtime.streams',
    'strict': 'values',
    'study': 'study.workers study.tasks study.preparation',
    'study_files': 'experiment.file',
    'study_json': 'results.study_json',
    'sweeps': 'experiment.sweeps',
}
# (old path, old name): the name now.
RENAMED = {('experiment', 'cells'): 'cells_of', ('analysis.dropoff', 'drops'): 'drop_off'}


def attribute(old, name):
    """Return the value that `name` had in the module `old` ('places').

    AttributeError where nothing has it.
    """
    if (Path(__file__).parent.joinpath(*old.split('.')) / f'{name}.py').is_file():
        raise AttributeError(name)  # a file of the room: the import that asks will open it
    if name.startswith('__'):
        raise AttributeError(name)  # inspect asks every module for its __file__
    name = RENAMED.get((old, name), name)
    # What one old module held may lie in several: the first that has the name answers.
    for place in MOVED[old].split():
        module = importlib.import_module(f'downscale.{place}')
        if name in vars(module):
            warnings.warn(f'downscale.{old} is now downscale.{place}', DeprecationWarning,
                          stacklevel=3)
            return vars(module)[name]
    raise AttributeError(f'module downscale.{old} has no attribute {name!r}')


class Finder(MetaPathFinder, Loader):
    """Find modules under their old paths; asked only for what no file holds."""

    def find_spec(self, fullname, path, target=None):
        """Return the spec of a moved module, None of any other."""
        package, _, old = fullname.partition('.')
        # None lets Python raise its own ModuleNotFoundError.
        return ModuleSpec(fullname, self) if package == 'downscale' and old in MOVED else None

    def create_module(self, spec):
        """Return an empty module that looks each name up when it is asked for."""
        module = types.ModuleType(spec.name)
        old = spec.name.partition('.')[2]
        # Looked up by name: importing all new places at once would drag in JAX for a constant.
        module.__getattr__ = lambda name: attribute(old, name)
        return module

    def exec_module(self, module):
        """Do nothing: names are looked up one by one."""
