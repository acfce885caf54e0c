"""How full the lines of this project's code are, file by file: python benchmarks/code_density.py [FOLDER ...]

Three figures, because short functions made of full lines are not short: tokens a line of code; comprehensions, lambdas
and conditional expressions a hundred lines; and the share of blank lines inside functions. Comments and docstrings are
no code. The standard library alone.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DENSE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WORST = 10


@dataclass
class Count:
    """Of one file, or of several added up."""

    name: str
    tokens: int = 0
    code_lines: int = 0
    dense: int = 0
    function_lines: int = 0
    blank_lines: int = 0

    def add(self, other: Count) -> None:
        self.tokens += other.tokens
        self.code_lines += other.code_lines
        self.dense += other.dense
        self.function_lines += other.function_lines
        self.blank_lines += other.blank_lines

    @property
    def tokens_a_line(self) -> float:
        return self.tokens / max(self.code_lines, 1)

    @property
    def dense_a_hundred(self) -> float:
        return 100 * self.dense / max(self.code_lines, 1)

    @property
    def blank_percent(self) -> float:
        return 100 * self.blank_lines / max(self.function_lines, 1)


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:] or ('repvgg_mm', 'tools')]
    paths = [path for folder in folders for path in sorted(folder.rglob('*.py'))]
    counts = [count_file(path) for path in paths]

    total = Count('all')
    for count in counts:
        total.add(count)

    print(f'{"":<40} {"code lines":>10} {"tokens a line":>14} {"dense / 100":>12} {"blank, %":>9}')
    for count in [total, *worst(counts)]:
        print(f'{count.name:<40} {count.code_lines:>10} {count.tokens_a_line:>14.1f} '
              f'{count.dense_a_hundred:>12.1f} {count.blank_percent:>9.1f}')


def count_file(path: Path) -> Count:
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source)
    docstrings = docstring_lines(tree)

    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline)
              if token.type not in NO_CODE and token.start[0] not in docstrings]
    code_lines = {token.start[0] for token in tokens}

    count = Count(str(path), len(tokens), len(code_lines))
    count.dense = sum(isinstance(node, DENSE) for node in ast.walk(tree))
    count.function_lines, count.blank_lines = lines_of_functions(tree, source.splitlines(), docstrings)
    return count


def docstring_lines(tree: ast.Module) -> set[int]:
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node):
            docstring = node.body[0]
            lines.update(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def lines_of_functions(tree: ast.Module, lines: list[str], docstrings: set[int]) -> tuple[int, int]:
    """Lines inside functions without their docstrings, and how many of them are blank; each counted once."""
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            inside.update(range(node.lineno, node.end_lineno + 1))
    inside -= docstrings

    blank = sum(not lines[number - 1].strip() for number in inside)
    return len(inside), blank


def worst(counts: list[Count]) -> list[Count]:
    """The fullest files of thirty lines or more."""
    long = [count for count in counts if count.code_lines > 30]
    long.sort(key=lambda count: count.tokens_a_line, reverse=True)
    return long[:WORST]


if __name__ == '__main__':
    main()
