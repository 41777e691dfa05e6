"""Manifests checked without a cluster: against the schemas of JobSet and Kueue, and by name.

The schemas (`schemas/`, see NOTICE there) are those of the oldest and the newest JobSet that this
package is for. They say nothing of the pods' fields beyond their types; what else a real cluster
refuses is in `gke.check_names`.
"""
import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

from downscale.launch.backends.gke import check_names

FOLDER = Path(__file__).with_name('schemas')
JOBSETS = ('jobset-v0.10.1', 'jobset-v0.12.0')
KINDS = {'ResourceFlavor': 'kueue-resourceflavors', 'ClusterQueue': 'kueue-clusterqueues',
         'LocalQueue': 'kueue-localqueues'}


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong with a JobSet or an object of Kueue, a line each, or []."""
    if manifest['kind'] != 'JobSet':
        return _against(KINDS[manifest['kind']], manifest)
    lines = []
    for name in JOBSETS:
        lines += _against(name, manifest)
    # Names are read from where the schema has them, so only of what passes it.
    return lines or check_names(manifest)


def problems_of_text(text: str) -> list[str]:
    """Return `problems` of a manifest as YAML."""
    import yaml
    return problems(yaml.safe_load(text))


def _against(name, manifest):
    """Return what the schema `name` says of a manifest."""
    # In the order of the fields, so that the same manifest gives the same lines.
    errors = sorted(_validator(name).iter_errors(manifest), key=lambda error: error.json_path)
    return [f'{error.json_path.removeprefix("$.")}: {error.message[:200]} ({name})'
            for error in errors]


@cache
def _validator(name):
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise ImportError("no jsonschema; pip install 'downscale[launch]'") from None
    return Draft202012Validator(closed(json.loads(
        gzip.decompress((FOLDER / f'{name}.json.gz').read_bytes()))))


def closed(schema: Any) -> Any:
    """Return a Kubernetes schema as JSON Schema in which a field without a name is an error.

    The parts of a schema (lists, texts, numbers) are taken as well.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # Kubernetes writes this one extension where JSON Schema has a choice of types.
    if schema.get('x-kubernetes-int-or-string'):
        pattern = {'pattern': schema['pattern']} if 'pattern' in schema else {}
        return {'type': ['integer', 'string'], **pattern}
    whole = {key: value if key in ('enum', 'default') else closed(value)
             for key, value in schema.items() if not key.startswith('x-')}
    if isinstance(schema.get('properties'), dict):
        # Keys of `properties` are names of fields, which may begin with 'x-' as well.
        whole['properties'] = {key: closed(value) for key, value in schema['properties'].items()}
        whole.setdefault('additionalProperties', False)
    return whole
