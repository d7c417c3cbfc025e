"""Python imports this when it starts: once torch is imported, its CUDA operations are those of device.py."""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType


class _AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            import pretended

            pretended.install()

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("PRETEND_CUDA"):
    sys.meta_path.insert(0, _AfterTorch())
