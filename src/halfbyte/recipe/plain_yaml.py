"""YAML as people read it: only `true` and `false` are switches. YAML 1.1, which PyYAML follows, makes switches of yes, no, on and off too, so that
a class called `no` would be learned as `False`; YAML 1.2 has them as text, and so have recipes."""

from typing import Any

import yaml

SWITCH = "tag:yaml.org,2002:bool"


class PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with fewer words that are switches."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != SWITCH or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }  # fmt: skip


def read_plain(text: str) -> Any:
    """The values of one document. Raises yaml.YAMLError, and ValueError for a date that is none."""
    loader = PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
