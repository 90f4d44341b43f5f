"""What `pyproject.toml` cannot say: a wheel holds what lies here now.

setuptools leaves the modules of a build in build/lib and packs all that it finds there the next time, so that
a module which was moved or removed since would be installed as well.
"""

from __future__ import annotations

import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class FreshBuild(build_py):
    """Begins with an empty build/lib."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build_py": FreshBuild})
