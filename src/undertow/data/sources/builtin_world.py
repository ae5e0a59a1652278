"""The built-in world of invented people."""

from __future__ import annotations

from undertow.config import Data
from undertow.core.errors import UserError
from undertow.data.generated import world
from undertow.data.load import DATASETS, Loaded


@DATASETS.register("world", source="this project; stands in for the closed-book QA of FIT section 4.1")
def built_in_world(options: Data) -> Loaded:
    """Questions about invented people; needs no file and no download.

    Raises:
        UserError: a path is given, which this dataset would silently ignore.
    """
    for name, value in (("data.path", options.path), ("data.test_path", options.test_path), ("data.names", options.names)):
        if value is not None:
            raise UserError(f"{name}={value}: dataset 'world' is generated and reads no file; unset it or set data.name")
    samples = world.samples()
    return Loaded(samples=samples, test=None, notes={"rows": len(samples), "dropped": {}})
