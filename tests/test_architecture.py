"""The house rules that a reader relies on: imports, outside libraries, how long things get, where their tests lie."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "cryoformer_dist"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

# Below all rooms: they import nothing of ours.
GROUND = {"errors", "machine", "progress", "ranks", "versions"}
# Imports point down only. A name with a dot is one module of a room.
MAY_IMPORT = {
    **{module: set() for module in GROUND},
    "physics": {"errors"},
    "storage": {"errors"},
    "config": {"errors"},
    "model": {"errors", "ranks", "config", "physics"},
    "io": {"errors", "physics", "storage"},
    "data": GROUND | {"physics", "io", "storage"},
    "simulation": GROUND | {"config", "physics", "io", "storage"},
    "inference": GROUND | {"physics", "data"},
    "initialization": GROUND | {"physics", "data", "inference"},
    "runs": GROUND | {"config", "physics", "io.mrc", "data", "storage", "initialization"},
    "selection": GROUND | {"physics", "io", "data", "storage", "runs"},
    "training": GROUND | {"config", "physics", "model", "data", "storage", "inference", "initialization", "runs"},
    "figures": {"errors", "config", "physics", "runs", "storage"},
    "analysis": GROUND
    | {"config", "physics", "io", "model", "data", "simulation", "initialization", "runs", "training", "figures"}
    | {"storage", "inference"},
    "exploration": GROUND
    | {"config", "physics", "io", "data", "initialization", "runs", "selection", "figures", "analysis", "storage"},
    "orchestration": GROUND
    | {"config", "physics", "io.reading", "model.kernels.encode_tinycudann", "data", "simulation", "runs", "training"}
    | {"analysis", "storage"},
}
MAY_IMPORT["viewer"] = (
    GROUND | {"physics", "io.mrc", "data", "storage", "runs", "selection", "figures", "analysis"} | {"exploration"}
)
# The command line stands above all rooms.
MAY_IMPORT["cli"] = set(MAY_IMPORT)

# One doorkeeper per outside library: what a new version breaks, it breaks there.
DOORKEEPERS = {
    "mrcfile": ("io.mrc",),
    "starfile": ("io.relion",),
    "gemmi": ("io.atoms",),
    "zarr": ("data.store",),
    "upath": ("storage",),
    "s3fs": ("storage",),
    "botocore": ("storage",),
    "ray": ("data.dataset", "orchestration"),
    "pyarrow": ("orchestration.ray_training",),
    "deepspeed": ("training.engine",),
    "yaml": ("config.loading", "config.yaml_text"),
    "pydantic": ("config",),
    "typer": ("cli",),
    "aiohttp": ("viewer",),
    "rich": ("cli.terminal",),
    "psutil": ("orchestration.cluster", "orchestration.providers.process"),
    # What Ray's cluster launcher raises.
    "click": ("orchestration.providers.ray_up_config",),
    "jsonschema": ("orchestration.providers.ray_up_config",),
    "matplotlib": ("figures",),
    "jinja2": ("figures.page",),
    "optuna": ("orchestration.tuning",),
    "umap": ("exploration.embedding",),
    "PIL": ("figures.movies",),
    "imageio_ffmpeg": ("figures.movies",),
    "scipy": (
        "analysis",
        "exploration",
        "figures.movies",
        "figures.surfaces",
        "io",
        "simulation",
    ),
    "triton": ("physics.splat_triton", "model.kernels.encode_triton", "model.kernels.fold_attend_triton"),
    "tinycudann": ("model.kernels.encode_tinycudann",),
}
# These need what a CPU does not have: nobody loads them before a GPU, or the configuration, asks for them.
ON_DEMAND = {*DOORKEEPERS["triton"], *DOORKEEPERS["tinycudann"]}
# Spoken everywhere, but not by the rooms that must load at once.
EVERYWHERE = {"torch", "numpy", "jaxtyping"}
LIGHT = ("cli", "config", "errors")

LONGEST_FILE, LONGEST_FUNCTION = 400, 60
# Nine functions in ten.
LONG_FUNCTION = 25
# So many modules a reader can keep in mind.
MOST_MODULES = {"training": 15, "analysis": 22}
# What stands in no signature: each is a form that nobody has named.
MOST_FREE_DICTIONARIES = 40
# Below so many lines, a module is tested where it is used.
LONGEST_UNTESTED = 60
TESTS = ROOT.parent / "tests"
# Longer ones whose tests lie elsewhere.
TESTED_ELSEWHERE = {
    # The classes say themselves what they are.
    "errors": "test_architecture.py",
    # Names and nothing else.
    "runs.layout": "runs/test_directory.py",
    # What providers have in common is tested through each of them.
    "orchestration.providers.provider": "orchestration/providers/test_kuberay.py",
    "orchestration.providers.job_server": "orchestration/providers/test_ray_up.py",
    "orchestration.providers.on_head": "orchestration/providers/test_ray_up.py",
    "orchestration.providers.ray_up_config": "orchestration/providers/test_ray_up.py",
}
# Whole runs and measurements belong to no module.
ACROSS_ROOMS = {"integration", "benchmarks"}
# Nor do these.
TESTS_OF_NO_MODULE = {
    "test_architecture.py",
    # The commands that the docs tell, and their site.
    "cli/test_docs.py",
    # The files of configs/ and cluster/.
    "config/test_shipped_configs.py",
    # Real files of other programs.
    "io/test_shared_files.py",
    # All kernels, as the assembler sees them.
    "model/kernels/test_kernels_compiled.py",
}

BANNED_MODULES = {"utils", "util", "helpers", "misc", "common"}
BANNED_WORDS = re.compile(r"(^|_)(apix|psize|dfu|dfv|utils?)(_|$)")


def module_name(path: Path) -> str:
    """Dotted, without the package: ``io.mrc``, ``cli``; a room's ``__init__`` is the room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {module: ast.parse(path.read_text(), str(path)) for module, path in paths().items()}


def paths() -> dict[str, Path]:
    # What npm brings for the viewer's page is not ours.
    ours = (path for path in sorted(ROOT.rglob("*.py")) if "node_modules" not in path.parts)
    return {module_name(path): path for path in ours}


@cache
def imported(tree: ast.AST) -> tuple[str, ...]:
    """Full dotted name of everything imported, anywhere in the tree."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def own_imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for name in imported(tree):
        if name.startswith(PACKAGE + "."):
            target = name.removeprefix(PACKAGE + ".")
            while target and target not in modules():
                target = target.rpartition(".")[0]
            found.add(target)
    return found - {""}


def functions() -> Iterator[tuple[int, str]]:
    """Length and name of every function."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.end_lineno - node.lineno + 1, f"{module}.{node.name}"


def length_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files() -> dict[str, Path]:
    """By their path in tests/."""
    return {path.relative_to(TESTS).as_posix(): path for path in sorted(TESTS.rglob("test_*.py"))}


test_files.__test__ = False


def module_tested_by(test: str) -> str | None:
    """Module that a test file is named for, exactly or with an aspect of it: ``test_<module>_<aspect>.py``."""
    *rooms, name = test.removesuffix(".py").split("/")
    words = name.removeprefix("test_").split("_")
    candidates = (".".join([*rooms, "_".join(words[:count])]) for count in range(len(words), 0, -1))
    return next((module for module in candidates if module in modules()), None)


def within(module: str, places: tuple[str, ...] | set[str]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in places)


def is_allowed(module: str, target: str) -> bool:
    room, other = module.split(".")[0], target.split(".")[0]
    return room == other or within(target, MAY_IMPORT[room])


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """Some closed path of imports, or nothing."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(edges.get(node, ())):
            if found := visit(target, [*trail, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


def test_every_room_is_in_the_table():
    rooms = {name.split(".")[0] for name in modules()} - {""}
    assert rooms == set(MAY_IMPORT)


def test_imports_point_down_only():
    assert [
        f"{module} imports {target}"
        for module, tree in modules().items()
        for target in sorted(own_imports(tree))
        if module and not is_allowed(module, target)
    ] == []


def test_the_table_would_catch_an_import_that_points_up():
    tree = ast.parse(f"def f():\n    from {PACKAGE}.io.mrc import read_volume\n    import {PACKAGE}.training.trainer")
    assert own_imports(tree) == {"io.mrc", "training.trainer"}
    assert not is_allowed("physics.ctf", "io.mrc")
    assert not is_allowed("data.store", "training.trainer")
    assert not is_allowed("orchestration.pipeline", "cli.terminal")
    assert not is_allowed("runs.directory", "io.relion")
    assert is_allowed("runs.directory", "io.mrc")


def test_modules_do_not_import_each_other_in_a_circle():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    edges = {module: own_imports(tree) - {module} for module, tree in modules().items()}
    assert sum(map(len, edges.values())) > 50
    assert cycle(edges) == []


def test_every_outside_library_has_its_doorkeeper():
    strangers = []
    for module, tree in modules().items():
        for name in imported(tree):
            library = name.split(".")[0]
            if library in sys.stdlib_module_names | EVERYWHERE | {PACKAGE}:
                continue
            if not within(module, DOORKEEPERS.get(library, ())):
                strangers.append(f"{module} imports {library}")
    assert strangers == []


@pytest.mark.parametrize("library", sorted(DOORKEEPERS))
def test_doorkeepers_stand_at_doors_that_exist(library):
    users = [module for module, tree in modules().items() if library in {name.split(".")[0] for name in imported(tree)}]
    assert users
    for place in DOORKEEPERS[library]:
        assert place in modules(), f"{place} is gone"


def test_triton_lives_in_files_that_say_so_each_beside_its_torch_twin():
    for module in DOORKEEPERS["triton"]:
        assert module.endswith("_triton")
        assert module.removesuffix("_triton") in modules()


def test_what_needs_a_gpu_is_imported_on_demand_only():
    users = {module for module, tree in modules().items() if own_imports(tree) & ON_DEMAND}
    assert users
    for module in users:
        heads = [node for node in modules()[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert set().union(*(own_imports(node) for node in heads)) & ON_DEMAND == set(), module
    # What is wrong with tinycudann is for its doorkeeper to say, not for an import to raise.
    (doorkeeper,) = DOORKEEPERS["tinycudann"]
    heads = [node for node in modules()[doorkeeper].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(name.split(".")[0] == "tinycudann" for node in heads for name in imported(node))


def test_rooms_that_load_at_once_do_not_import_torch():
    heavy = {"torch", "ray", "deepspeed", "numpy"}
    assert [
        f"{module} imports {name} at its head"
        for module, tree in modules().items()
        if within(module, LIGHT)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node)
        if name.split(".")[0] in heavy
    ] == []


def test_help_appears_without_torch_or_ray():
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cryoformer_dist.cli.main import app\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "assert result.exit_code == 0 and 'launch' in result.output, result.output\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'deepspeed', 'zarr', 'numpy'}))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, cwd=ROOT.parent, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_files_are_short():
    lengths = {module: length_of(path) for module, path in paths().items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short():
    lengths = sorted(length for length, _ in functions())
    nine_in_ten = lengths[9 * len(lengths) // 10]
    print(f"{len(lengths)} functions, nine in ten up to {nine_in_ten} lines, the longest {lengths[-1]}")
    assert nine_in_ten <= LONG_FUNCTION
    assert [f"{name}: {length} lines" for length, name in functions() if length > LONGEST_FUNCTION] == []


def test_rooms_stay_small_enough_to_know():
    counts = {room: sum(name.startswith(f"{room}.") for name in modules()) for room in MAY_IMPORT}
    print(", ".join(f"{room} {count}" for room, count in sorted(counts.items()) if count))
    assert {room: counts[room] for room, most in MOST_MODULES.items() if counts[room] > most} == {}


def names_of_the_run_directory() -> set[str]:
    """Values of all constants of the layout."""
    assigned = [node.value for node in modules()["runs.layout"].body if isinstance(node, ast.Assign)]
    return {node.value for node in assigned if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def named_files(tree: ast.AST, names: set[str]) -> set[str]:
    """Literal names of files, and of folders where a path is made of them."""
    files = {name for name in names if "." in name}
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    parts = {
        node.right.value
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
    }
    return {text for text in texts if text in files} | (parts & (names - files))


def test_names_of_the_run_directory_stand_in_its_layout_only():
    names = names_of_the_run_directory()
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "volumes"} <= names
    assert named_files(ast.parse('x = run / "volumes" / "mean.mrc"\ny = "volumes"'), names) == {"volumes"}
    assert named_files(ast.parse('x = "manifest.json"'), names) == {"manifest.json"}
    assert {
        module: found
        for module, tree in modules().items()
        if module != "runs.layout" and (found := named_files(tree, names))
    } == {}


def test_nobody_but_the_learner_writes_tables():
    assert [
        module
        for module, tree in modules().items()
        if module != "training.learner"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "tables" and module.startswith(("training.", "analysis."))
    ] == []


def test_few_dictionaries_hold_anything():
    counts = {module: path.read_text().count("dict[str, Any]") for module, path in paths().items()}
    print({module: count for module, count in counts.items() if count}, sum(counts.values()))
    assert sum(counts.values()) <= MOST_FREE_DICTIONARIES


def test_every_test_file_is_named_for_a_module_at_its_path():
    assert module_tested_by("io/test_mrc.py") == "io.mrc"
    assert module_tested_by("io/test_mrc_header.py") == "io.mrc_header"
    assert module_tested_by("io/test_relion_writing.py") == "io.relion"
    assert module_tested_by("data/test_mrc.py") is None
    strangers = {test for test in test_files() if module_tested_by(test) is None}
    assert {test for test in strangers if test.split("/")[0] not in ACROSS_ROOMS} == TESTS_OF_NO_MODULE


def test_every_long_module_has_a_test_file_at_its_path():
    tested = {module_tested_by(test) for test in test_files()}
    long = {module for module, path in paths().items() if length_of(path) > LONGEST_UNTESTED}
    # A kernel in Triton is tested with its twin in torch.
    assert {module for module in long if module.removesuffix("_triton") not in tested} == set(TESTED_ELSEWHERE)
    assert set(TESTED_ELSEWHERE.values()) <= set(test_files())


def test_no_test_file_imports_another():
    assert [
        f"{test} imports {name}"
        for test, path in test_files().items()
        for name in imported(ast.parse(path.read_text()))
        if any(part.startswith("test_") for part in name.split(".")[:-1])
    ] == []


def test_no_module_is_named_for_nothing():
    assert [module for module in modules() if set(module.split(".")) & BANNED_MODULES] == []


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def test_names_carry_units_instead_of_the_fields_shorthand():
    assert [name for name in ("apix", "psize_x", "_dfu", "my_utils") if not BANNED_WORDS.search(name)] == []
    assert [
        f"{module}: {name}"
        for module, tree in modules().items()
        for name in identifiers(tree)
        # Torch's own module is not ours to rename.
        if BANNED_WORDS.search(name) and name != "utils"
    ] == []


def test_nothing_postpones_annotations():
    # The shape checks of the tests read annotations as they stand.
    assert [module for module, tree in modules().items() if "__future__.annotations" in imported(tree)] == []


def test_every_exception_of_the_program_takes_one_message():
    tree = modules()["errors"]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) > 8
    assert [node.name for node in classes if any(isinstance(item, ast.FunctionDef) for item in node.body)] == []


def test_every_room_travels_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py")}
    assert rooms <= set(listed)
