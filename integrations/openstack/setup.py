"""Makes the Python classes of weft's gRPC API, the package `weft.v1`, of its definition in `proto/` of the repository."""

import shutil
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

HERE = Path(__file__).parent
DEFINITION = HERE.parent.parent / "proto"
FILES = ["weft/v1/objects.proto", "weft/v1/intent.proto"]


class BuildApi(Command):
    """Beside the other packages, where they are looked for next."""

    def initialize_options(self) -> None:
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        from grpc_tools import protoc

        into = HERE if self.editable_mode else Path(self.build_lib)
        into.mkdir(parents=True, exist_ok=True)
        arguments = ["protoc", f"-I{DEFINITION}", f"--python_out={into}", f"--grpc_python_out={into}"]
        if protoc.main([*arguments, *FILES]) != 0:
            raise RuntimeError(f"protoc cannot make Python of {FILES} in {DEFINITION}")
        for package in (into / "weft", into / "weft/v1"):
            (package / "__init__.py").touch()

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands: ClassVar = [("build_api", None), *build.sub_commands]


shutil.rmtree(HERE / "build", ignore_errors=True)
setup(cmdclass={"build": Build, "build_api": BuildApi})
