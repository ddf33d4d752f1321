"""Write docs/recipes.md: every key of a recipe with its default and the comment that stands beside it in the source.

    python docs/make_recipes.py

Reads the source as text and imports nothing of it, so that the page can be made without installing anything.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HOUSE = HERE.parent / "src" / "algorist"
PAGE = HERE / "recipes.md"
# Section → the file whose Settings it fills, and what it steers; a file with a STAGE takes the loop's keys too.
SECTIONS = {
    "model": ("model/chat.py", "The model that everything starts from."),
    "toy": ("toy/world.py", 'The made-up world; read where `problems`, `benchmarks` or the model is "toy".'),
    "data": ("data/sources.py", "What is learned from, and what is scored on."),
    "teacher": ("data/teacher.py", "Who writes the rollouts that stages 1 to 3 learn from."),
    "verify": (
        "verify/pool.py",
        "The limits of one comparison of an answer with the gold one, and what counts as the same answer.",
    ),
    "judge": (
        "verify/judge.py",
        "A second opinion on the teacher's rollouts; scores and rewards are the rules' alone.",
    ),
    "repetition": (
        "data/repetition.py",
        "When a rollout loops, repeats itself or mixes languages ([measured](repetition.md)).",
    ),
    "labels": (
        "data/labels.py",
        "A language model says of what domain and level a problem is; nobody is asked unless `url` is set.",
    ),
    "curate": ("data/curate.py", "Which rollouts become what: the rules of the four sets ([docs/sets.md](sets.md))."),
    "evaluate": ("evals/evaluate.py", "How every checkpoint is asked."),
    "base": ("stages/base.py", 'The made-up world\'s base model; read where `[model] base` is "toy".'),
    "midtrain": ("stages/midtrain.py", "Stage 1: [what it does](stages/1.md)."),
    "sft": ("stages/sft.py", "Stage 2: [what it does](stages/2.md)."),
    "dpo": ("stages/dpo.py", "Stage 3: [what it does](stages/3.md)."),
    "rlvr": ("stages/rlvr.py", "Stage 4: [what it does](stages/4.md)."),
}
CONVENTIONS = "verify/conventions.py"  # whose keys [verify] takes too
HEAD = """# Every key of a recipe

Made by `python docs/make_recipes.py` from the settings classes and the comments beside their keys; edit those, not this
page. A key that a recipe leaves out has the default shown here, or its `preset`'s, and a section that it leaves out has
all of them.
`algorist check recipes/tiny.toml` prints a recipe with every default filled in.

At the top of the file:

| key | default | takes | |
|---|---|---|---|
| `name` | none, must be given | a string | names the run folder, `runs/<name>` |
| `seed` | `0` | a whole number | every random choice depends on it |
| `stages` | all four | a list of strings | the stages that run, each on what the one before it made |
| `extends` | none | a string | a recipe to put below this one; its path is relative to this file |
"""
TAKES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string"}


class Source:
    """One file: its classes, constants and lines."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        self.lines = text.splitlines()
        self.tree = ast.parse(text)
        self.classes = {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}
        self.names: dict[str, ast.expr] = {}  # module-level constants
        self.modules: dict[str, Path] = {}  # names under which other files of ours are imported
        self.homes: dict[str, Path] = {}  # what is imported from a file of ours → that file
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = node.value
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("algorist"):
                folder = HOUSE.joinpath(*(node.module or "").split(".")[1:])
                self.modules |= {a.asname or a.name: folder / f"{a.name}.py" for a in node.names}
                self.homes |= {a.asname or a.name: folder.with_suffix(".py") for a in node.names}

    def value(self, node: ast.expr) -> Any:
        """What a default is; an instance of a settings class is None, its own keys are listed."""
        if isinstance(node, ast.Name):
            return self.value(self.names[node.id])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            other = Source(self.modules[node.value.id])
            return other.value(other.names[node.attr])
        if isinstance(node, ast.Tuple):
            return [self.value(item) for item in node.elts]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {self.value(key): self.value(item) for key, item in pairs if key is not None}
        if isinstance(node, ast.Call):
            factory = node.keywords[0].value if node.keywords else None
            if isinstance(factory, ast.Lambda):
                return self.value(factory.body)
            return {} if isinstance(factory, ast.Name) and factory.id == "dict" else None
        return ast.literal_eval(node)

    def keys(self, name: str, changed: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any, str, str]]:
        """(key, default, what it takes, comment) of a settings class, those of its tables after it."""
        for field in self.classes[name].body:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            key, hint = field.target.id, ast.unparse(field.annotation)
            if hint.startswith("ClassVar"):
                continue
            home = self if hint in self.classes else Source(self.homes[hint]) if hint in self.homes else None
            if home is not None:
                yield from home.keys(hint, {}, f"{above}{key}.")
                continue
            assert field.value is not None, f"{name}.{key} has no default"
            default = changed[key] if key in changed else self.value(field.value)
            yield above + key, default, takes(field.annotation), self.comment(field)

    def tables(self, name: str) -> Iterator[str]:
        """What each table of a key that holds tables by name takes, as a list below the keys of the section."""
        for field in self.classes[name].body:
            if isinstance(field, ast.AnnAssign) and (inner := table_of(field.annotation)) in self.classes:
                yield f"Each table of `{ast.unparse(field.target)}` takes:\n"
                for key, default, kind, comment in self.keys(inner, {}):
                    yield f"- `{key}`, {kind}, `{toml(default)}` unless given: {comment}"

    def comment(self, field: ast.AnnAssign) -> str:
        """What stands behind a key on the line where its default ends, else in the line above it."""
        assert field.end_lineno is not None
        rest = self.lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode().strip()
        above = self.lines[field.lineno - 2].strip()
        return (rest or (above if above.startswith("#") else "")).removeprefix("#").strip()

    def training(self) -> dict[str, Any] | None:
        """The defaults with which a stage's STAGE fills the loop's keys, None where the file has no stage."""
        stage = self.names.get("STAGE")
        if not isinstance(stage, ast.Call):
            return None
        calls = [a for a in stage.args if isinstance(a, ast.Call) and ast.unparse(a.func) == "Training"]
        return {word.arg: self.value(word.value) for word in calls[0].keywords if word.arg}


def table_of(hint: ast.expr) -> str:
    """`Source` of `dict[str, Source]`, else empty."""
    if isinstance(hint, ast.Subscript) and ast.unparse(hint.value) == "dict" and isinstance(hint.slice, ast.Tuple):
        return ast.unparse(hint.slice.elts[1])
    return ""


def takes(hint: ast.expr) -> str:
    """A type in the words that error messages use."""
    if isinstance(hint, ast.BinOp):
        return f"{takes(hint.left)} or {takes(hint.right)}"
    if isinstance(hint, ast.Subscript):
        name = ast.unparse(hint.value)
        inner = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
        if name == "Literal":
            return "one of " + ", ".join(f"`{json.dumps(ast.literal_eval(item))}`" for item in inner)
        item = takes(inner[1] if name == "dict" else inner[0]).removeprefix("a ")
        return f"a {'table' if name == 'dict' else 'list'} of {item}s"
    return TAKES.get(ast.unparse(hint), "a table")


def toml(value: Any) -> str:
    """A default as a recipe would write it."""
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return str(value)
    return json.dumps(value)


def page() -> str:
    """The whole of docs/recipes.md."""
    loop = Source(HOUSE / "stage.py")
    parts = [HEAD]
    for section, (file, about) in SECTIONS.items():
        source = Source(HOUSE / file)
        rows = [
            "| key | default | takes | |",
            "|---|---|---|---|",
            *(row(*key) for key in source.keys("Settings", {})),
        ]
        changed = source.training()
        if changed is not None:
            rows += [row(*key) for key in loop.keys("Training", changed)]
        where = f"`src/algorist/{file}`"
        if section == "verify":
            rows += [row(*key) for key in Source(HOUSE / CONVENTIONS).keys("Conventions", {})]
            where += f" and, from `rounding` on, `src/algorist/{CONVENTIONS}`"
        where += "" if changed is None else " and, from `learning_rate` on, `src/algorist/stage.py`"
        below = [*source.tables("Settings")]
        below = ["", *below] if below else []
        parts.append(f"## [{section}]\n\n{about}\nFrom {where}.\n\n" + "\n".join([*rows, *below]) + "\n")
    return "\n".join(parts)


def row(key: str, default: Any, kind: str, comment: str) -> str:
    """One line of a table."""
    shown = toml(default).replace("|", "\\|")
    return f"| `{key}` | `{shown}` | {kind} | {comment.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
