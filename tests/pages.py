"""README and the pages in docs, and what is in them: code, commands, links, headings."""

from __future__ import annotations

import re

from tool_runs import ROOT

README = ROOT / 'README.md'
PAGES = [README, ROOT / 'CHANGELOG.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}

# The parts of a page, each as its text.
CODE_BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r'`([^`]+)`')
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)

COMMAND = re.compile(r'python ((?:tools|benchmarks)/\w+\.py)(.*)')


def without_code_blocks(text: str) -> str:
    return CODE_BLOCK.sub('', text)


def python_snippets(text: str) -> list[str]:
    return [code for language, code in CODE_BLOCK.findall(text) if language == 'python']


def commands_in(text: str) -> list[str]:
    """Every command of this project in code blocks and inline code, `tools/NAME.py ARGUMENTS` each."""
    lines = []
    for _, code in CODE_BLOCK.findall(text):
        lines += code.splitlines()
    for code in INLINE_CODE.findall(without_code_blocks(text)):
        lines.append(code.replace('\n', ' '))

    found = []
    for line in lines:
        match = COMMAND.search(line)
        if match:
            found.append(f'{match[1]}{match[2]}')
    return found


def anchors_of(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    for heading in HEADING.findall(without_code_blocks(text)):
        kept = re.sub(r'[^\w\- ]', '', heading.lower())
        found.add(kept.replace(' ', '-'))
    return found
