import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "aigc_compress": ROOT / "compress",
    "aigc_compress.bench": ROOT / "bench",
    "aigc_compress.models": ROOT / "models",
    "aigc_compress.recipes": ROOT / "recipes",
}


def packages_in_tree() -> set[str]:
    found = set()
    for package, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(folder).parts]))
    return found


def test_package_list_equals_the_tree():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["setuptools"]["packages"]) == packages_in_tree()


@pytest.mark.parametrize("name", ["aigc_compress", "aigc_compress.runtime"])
def test_importing_costs_no_heavy_library(name):
    heavy = ("torch", "onnx", "scipy", "typer", "rich", "pydantic")
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_graphs_are_quantized_without_torch():
    code = "import sys, aigc_compress.quantizing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_runtime_imports_numpy_onnxruntime_and_our_errors_alone():
    # cryptography is imported where a signature is checked, not before.
    allowed = {"aigc_compress.errors", "aigc_compress.packed"}
    packages = {*sys.stdlib_module_names, "cryptography", "numpy", "onnxruntime"}
    for path in (ROOT / "compress" / "runtime").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                assert name in allowed or name.split(".")[0] in packages, f"{path}: {name}"
    code = "import sys, aigc_compress.runtime; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert not loaded & {"cryptography", "onnx", "pydantic", "rich", "torch", "typer"}


def test_every_public_name_is_there():
    import aigc_compress

    for name in aigc_compress.__all__:
        assert getattr(aigc_compress, name) is not None


# A floor imports only from floors below it: 1 is the top.
FLOORS = {
    # These commands in `bench` call the library as a user does, so they stand beside the CLI.
    1: ["compress/cli", "bench/edge.py", "bench/error_rates.py", "bench/gpu", "bench/peers"],
    2: [
        "compress/analysis",
        "compress/web",
        *(
            f"compress/{n}.py"
            for n in (
                "api",
                "bench_result",
                "benching",
                "building",
                "bundle_variants",
                "bundling",
                "cache",
                "candidates",
                "choosing",
                "gate",
                "packing",
                "pipeline",
                "preparing",
                "quantizing",
                "refine",
                "replay",
                "running",
                "serving",
                "splitting",
                "why_not",
                "workload",
            )
        ),
    ],
    3: ["bench", "models", "compress/loading.py"],
    4: ["compress/passes", "compress/engines"],
    5: [
        f"compress/{n}.py"
        for n in (
            [
                "artifact",
                "closeness",
                "coach",
                "budget",
                "checkpoint",
                "errors",
                "feeds",
                "keys",
                "machine",
                "meter",
                "npz",
                "packed",
                "recipe",
                "schemes",
                "storage",
                "task",
                "console",
            ]
        )
    ],
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def floor_of(path: Path) -> int | None:
    relative = str(path.relative_to(ROOT))
    for name, floor in FLOOR_OF.items():
        if relative == name or relative.startswith(name + "/"):
            return floor
    return None


def file_of(module: str) -> Path | None:
    for package in sorted(FOLDERS, key=len, reverse=True):
        if module == package or module.startswith(package + "."):
            parts = module.removeprefix(package).strip(".").split(".")
            base = FOLDERS[package].joinpath(*[p for p in parts if p])
            return base.with_suffix(".py") if base.with_suffix(".py").exists() else base
    return None


def imported_files(path: Path) -> set[Path]:
    """Return the files that a module imports when it is itself imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = path.parent if node.level == 1 else path.parents[node.level - 1]
            target = base.joinpath(*(node.module or "").split("."))
            found.add(target.with_suffix(".py") if target.with_suffix(".py").exists() else target)
        elif (node.module or "").startswith("aigc_compress"):
            file = file_of(node.module)
            if file is not None:
                found.add(file)
    return found


def test_no_floor_imports_from_a_floor_above_it():
    faults = []
    for folder in FOLDERS.values():
        for path in folder.rglob("*.py"):
            mine = floor_of(path)
            for target in imported_files(path):
                theirs = floor_of(target)
                if mine and theirs and theirs < mine:
                    faults.append(f"{path.relative_to(ROOT)} imports {target.relative_to(ROOT)}")
    assert not faults
