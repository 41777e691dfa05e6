"""What the code leans on that its libraries do not promise: after an upgrade, what has moved.

Each list is compared with the code as well, so that it names all that is used and nothing else.
What the TPU compiler says of a program that does not fit is in `test_plan_refusals.py`.
"""
import argparse
import ast
import ctypes
import errno
import inspect
import mmap
import os
import re
import sys
from importlib import import_module
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from jax._src import distributed

from downscale.planner import hlo
from downscale.runtime import exits, peers
from downscale.train import checkpoint, lazy_leaves

PACKAGE = Path(checkpoint.__file__).parents[1]
# Modules of jax that are private, or that may change, as (file, module, name): what breaks when one
# has moved.
MODULES = {
    ('runtime/peers.py', 'jax._src', 'distributed'):
        'no process starts among several: its client is made there',
    ('runtime/processes.py', 'jax._src.distributed', 'global_state'):
        'every command: who this process is among several is read there',
    ('runtime/processes.py', 'jax.experimental.multihost_utils', 'reached_preemption_sync_point'):
        'every command; several processes would not agree on the step at which to stop',
    ('planner/worker.py', 'jax.experimental', 'topologies'):
        'plan and launch on TPUs: a chip that is not there is compiled for',
    ('policy/rollouts.py', 'jax.experimental.multihost_utils', 'process_allgather'):
        'the stage perceive over several processes: none would see the others\' rows',
    ('sharding.py', 'jax.experimental', 'mesh_utils'):
        'training: the order of devices in a mesh comes from there',
    ('model/splash.py', 'jax.experimental.pallas.ops.tpu.splash_attention',
     'splash_attention_kernel'): 'every model: attention on TPUs is this kernel',
    ('model/splash.py', 'jax.experimental.pallas.ops.tpu.splash_attention',
     'splash_attention_mask'): 'every model: the masks of that kernel'}
# What runtime/ takes from JAX's state of several processes, and from its key-value store. Without
# it processes cannot join, agree on an end, or tell of a loss.
STATE = ('client', 'process_id', 'num_processes', 'coordinator_address', 'preemption_sync_manager')
STORE = ('key_value_set', 'key_value_try_get', 'key_value_dir_get', 'key_value_delete',
         'blocking_key_value_get', 'wait_at_barrier')
# What train/checkpoint.py and lazy_leaves.py take from orbax, and the parameters of methods that
# they override.
# Without the first no checkpoint is written or read; an overridden method that is no longer called
# is silent: a step under another name, no save at a preemption, a leaf held whole.
ORBAX = ('ArrayRestoreArgs', 'AsyncOptions', 'CheckpointManager', 'CheckpointManagerOptions',
         'Checkpointer', 'JsonCheckpointHandler', 'PyTreeCheckpointHandler', 'RestoreArgs',
         'SaveArgs', 'args.Composite', 'args.JsonRestore', 'args.JsonSave', 'args.PyTreeRestore',
         'args.PyTreeSave', 'path.atomicity.AtomicRenameTemporaryPath', 'path.step.Metadata',
         'path.step.NameFormat',
         'type_handlers.NumpyHandler', 'type_handlers.create_type_handler_registry',
         'utils.is_checkpoint_finalized')
OVERRIDDEN = {
    'CheckpointManager.reached_preemption': ['self', 'step'],
    'CheckpointManager.wait_until_finished': ['self'],
    'CheckpointManager.close': ['self'],
    'path.step.NameFormat.build_name': ['self', 'step'],
    'path.step.NameFormat.find_all': ['self', 'base_path'],
    'path.step.NameFormat.find_step': ['self', 'base_path', 'step'],
    'type_handlers.NumpyHandler.serialize': ['self', 'values', 'infos', 'args'],
    'type_handlers.NumpyHandler._background_serialize': ['self', 'values', 'infos', 'args'],
    'type_handlers.NumpyHandler._open_and_write': ['self', 'value', 'tspec', 'ts_context']}
# What commands/parsing.py reads of argparse.
PARSER = ('_actions', '_option_string_actions', '_SubParsersAction')
# Without them the times of compiling and of reading a checkpoint are 0 in every record.
EVENTS = {'/jax/core/compile/backend_compile_duration', '/jax/orbax/read/total_duration_secs'}


def reached(owner, dotted):
    """The attribute at a dotted path; AttributeError where it has moved."""
    for name in dotted.split('.'):
        owner = getattr(owner, name)
    return owner


def lacking(owner, names):
    """Those of the dotted `names` that `owner` no longer has."""
    gone = []
    for name in names:
        try:
            reached(owner, name)
        except AttributeError:
            gone.append(name)
    return gone


def there(module, name):
    """Whether `name` can be imported from a module, as a module of its own or one of its values."""
    try:
        return hasattr(import_module(module), name) or bool(import_module(f'{module}.{name}'))
    except ImportError:
        return False


def trees(*files):
    """The syntax trees of files of the package, of all without any named."""
    for path in [PACKAGE / file for file in files] or sorted(PACKAGE.rglob('*.py')):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def attributes(pattern, *files):
    """What matches `pattern`, with one group, among the attributes that files use."""
    matches = [re.search(pattern, ast.unparse(node)) for _, tree in trees(*files)
               for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {match[1] for match in matches if match}


# --- jax --------------------------------------------------------------------------------------

def test_jax_still_has_the_modules_that_may_change():
    used = {(file, node.module, alias.name) for file, tree in trees()
            for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
            and re.match(r'jax\.(_src|experimental|extend|interpreters)|jaxlib', node.module)
            for alias in node.names}
    assert used == set(MODULES)
    assert not {place: breaks for place, breaks in MODULES.items() if not there(*place[1:])}


def test_jax_still_tells_of_its_processes_and_has_a_store():
    files = 'runtime/peers.py', 'runtime/processes.py'
    assert attributes(r'global_state\.(\w+)$', *files) == set(STATE)
    assert attributes(r'\bclient\.(\w+)$', *files) == set(STORE)
    assert not lacking(distributed.global_state, STATE)
    assert not lacking(distributed._jax.DistributedRuntimeClient, STORE)


def test_jax_still_makes_its_client_where_peers_puts_a_callback():
    """peers.told_of_loss replaces this function of the module while a client is made."""
    make = distributed._jax.get_distributed_runtime_client
    assert 'missed_heartbeat_callback: collections.abc.Callable' in make.__doc__
    assert '_jax.get_distributed_runtime_client(' in inspect.getsource(distributed.State)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, '_catch_terminate', lambda action: None)
        with peers.told_of_loss(lambda: None):
            assert distributed._jax.get_distributed_runtime_client.func is make
    assert distributed._jax.get_distributed_runtime_client is make


@pytest.mark.skipif(sys.platform != 'linux', reason='the library of C++ has other names')
def test_jaxlib_still_has_the_key_of_the_notice_and_cpp_its_hooks():
    """Without the key a preemption of one process is a crash to the others; without the hooks the
    loss of process 0 ends them with pages of C++ and another exit code.
    """
    library = Path(jaxlib.__file__).with_name('libjax_common.so')
    with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        assert text.find(peers.NOTICE.encode()) >= 0
    source = inspect.getsource(peers._catch_terminate)
    for symbol in ('_ZSt13set_terminatePFvvE', '__cxa_current_exception_type'):
        assert symbol in source and hasattr(ctypes.CDLL('libstdc++.so.6'), symbol)


# --- orbax ------------------------------------------------------------------------------------

def test_orbax_still_has_what_checkpoints_use_and_override():
    used = set()
    for file in ('train/checkpoint.py', 'train/lazy_leaves.py'):
        used |= attributes(r'^ocp\.([\w.]+)$', file)
    assert {name for name in used
            if not any(other.startswith(f'{name}.') for other in used)} == set(ORBAX)
    assert not lacking(ocp, (*ORBAX, *OVERRIDDEN))
    for name, arguments in OVERRIDDEN.items():
        assert list(inspect.signature(reached(ocp, name)).parameters) == arguments, name
    assert '/orbax/' in inspect.getsourcefile(ocp.CheckpointManager)  # checkpoint._is_foreign


def test_orbax_and_jax_still_say_what_takes_time_and_steps_are_renamed(tmp_path):
    """A step is written as N.orbax-checkpoint-tmp, in which its checksums are written last."""
    said, partial = set(), []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: said.add(event))
    state = {'step': jnp.int32(1), 'params': {'language': {'head_DV': jnp.ones((2, 3))}},
             'opt_state': {'mean': jnp.zeros(3)}}

    class Stream:
        """A stream at its beginning."""
        get_state = staticmethod(lambda: {'next': 0})
        set_state = staticmethod(lambda state: None)

    jax.jit(lambda x: x * 3 + 1)(jnp.ones(3))
    manager = checkpoint.open_manager(tmp_path)
    write = checkpoint.checksums.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.checksums, 'write', lambda folder: (
            partial.append((folder.name, folder.exists())), write(folder)))
        checkpoint.save(manager, state, Stream, {'tokens': 5}, force=True)
        manager.wait_until_finished()
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    restored, meta = checkpoint.restore(manager, target, Stream)
    manager.close()
    assert partial == [('1.orbax-checkpoint-tmp', True)]
    assert meta == {'tokens': 5} and restored['params']['language']['head_DV'].sum() == 6
    assert said >= EVENTS
    texts = ' '.join(ast.unparse(tree) for _, tree in trees(
        'generate/engine.py', 'launch/record.py'))
    assert all(event in texts for event in EVENTS)


class Leaf:
    """A leaf of 3 x 4 that is read in parts of 2 x 4."""
    shape, dtype, chunk = (3, 4), np.dtype('float32'), (2, 4)
    values = np.arange(12, dtype='float32').reshape(3, 4)

    def read(self, index):
        return self.values[index]


def test_orbax_still_hands_leaves_to_the_handler_that_writes_their_chunks(tmp_path):
    lazy_leaves.save_leaves(tmp_path, {'language': {'head_DV': Leaf()}}, {'tokens': 0})
    stored = lazy_leaves.open_leaves(tmp_path)['language']['head_DV']
    np.testing.assert_array_equal(stored.read(), Leaf.values)
    chunks = {path.name for path in (tmp_path / 'checkpoints').rglob('*')
              if re.fullmatch(r'\d+\.\d+', path.name)}
    assert chunks == {'0.0', '1.0'}


# --- tensorstore ------------------------------------------------------------------------------

def test_tensorstore_still_says_what_exits_read(tmp_path):
    """Else a bucket that is away for a moment is a wrong setting, and the job is not run again."""
    (tmp_path / 'file').write_text('')
    where = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{tmp_path}/file/below/'},
             'dtype': 'uint8', 'schema': {'domain': {'shape': [1]}}}
    said = {}
    for how in ('open', 'create'):
        with pytest.raises(ValueError) as error:
            tensorstore.open(where, **{how: True}).result()
        said[how] = str(error.value)
        assert exits._STATUS.match(said[how])[1] in exits._STAYS + exits._PASSES
        assert not exits.passes(error.value)
    assert said['open'].startswith('NOT_FOUND')
    assert exits._SYSTEM.search(said['create'])[2] == str(errno.ENOTDIR)


# --- python -----------------------------------------------------------------------------------

def test_python_still_keeps_the_options_of_a_parser():
    """commands/parsing.py proposes the nearest option or command from them; else mistyped words
    end in a traceback.
    """
    assert attributes(r'\.(_[a-zA-Z]\w+)$', 'commands/parsing.py') == set(PARSER)
    parser = argparse.ArgumentParser()
    parser.add_argument('--out')
    verbs = parser.add_subparsers()
    verbs.add_parser('study')
    assert '--out' in parser._option_string_actions and verbs in parser._actions
    assert isinstance(verbs, argparse._SubParsersAction) and 'study' in verbs.choices
    assert list(inspect.signature(parser._check_value).parameters) == ['action', 'value']


# --- the text of compiled programs ------------------------------------------------------------

def test_compiled_programs_still_read_as_the_planner_reads_them():
    """planner/hlo.py: the entry, a loop with its count, the dimensions that a product sums over.
    Else `plan` fails, or has too few FLOPs and bytes: a loop counts once.
    """
    def layers(x_BD, up_NDD):
        return jax.lax.scan(lambda x, up: (jnp.tanh(x @ up), None), x_BD, up_NDD)[0]
    compiled = jax.jit(layers).lower(jnp.ones((32, 64)), jnp.ones((5, 64, 64))).compile()
    text = compiled.as_text()
    assert re.search(r'^ENTRY %?[\w.\-]+ .*-> .*\{$', text, re.MULTILINE)
    assert re.search(r' while\(.*condition=%?[\w.\-]+, body=%?[\w.\-]+', text)
    assert re.search(r'known_trip_count"?:\{"n":"5"', text)
    assert re.search(r'lhs_contracting_dims=\{1\}', text)
    found = hlo.facts(text)
    assert found['flops'] == 5 * 2 * 32 * 64 * 64 and not found['endless_loops']
    assert not lacking(compiled.memory_analysis(), [
        f'{kind}_size_in_bytes' for kind in ('argument', 'temp', 'output', 'alias')])


# --- all of it --------------------------------------------------------------------------------

def test_no_other_private_name_of_a_library_is_used():
    """Attributes of others that begin with one underscore, but for those that are documented."""
    documented = {'_exit', '_fields', '_replace'}
    used = {ast.unparse(node) for _, tree in trees() for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and re.match('_[^_]', node.attr)
            and ast.unparse(node.value) not in ('self', 'cls') and node.attr not in documented}
    assert used == {'jax_distributed._jax', 'library._ZSt13set_terminatePFvvE',
                    'argparse._SubParsersAction', 'sub._option_string_actions'}
    private = {(file, node.module) for file, tree in trees() for node in ast.walk(tree)
               if isinstance(node, ast.ImportFrom) and re.search(r'(^|\.)_', node.module)}
    assert private == {place[:2] for place in MODULES if '._' in place[1]}


# --- the canary itself ------------------------------------------------------------------------

def test_what_has_moved_is_named(monkeypatch):
    assert lacking(ocp, ['utils.gone', 'gone.away', 'args.JsonSave']) == ['utils.gone', 'gone.away']
    monkeypatch.delattr(ocp.utils, 'is_checkpoint_finalized')
    assert lacking(ocp, ORBAX) == ['utils.is_checkpoint_finalized']
    monkeypatch.delattr(os, 'replace')
    assert lacking(os, ['replace', 'rename']) == ['replace']
    assert attributes(r'^ocp\.(utils)\.', 'train/checkpoint.py') == {'utils'}
