import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SENTENCES = re.compile(r"^\*\*([A-Z]+\d+)\.\*\*", re.MULTILINE)


def numbers_in_the_document() -> list[str]:
    return SENTENCES.findall((ROOT / "docs" / "RUNTIME-SEMANTICS.md").read_text())


def numbers_on_tests() -> list[str]:
    numbers = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            numbers.extend(
                ast.literal_eval(decorator.args[0])
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.semantics"
            )
    return numbers


def test_every_numbered_sentence_has_exactly_one_test_and_every_such_test_a_sentence():
    documented, tested = numbers_in_the_document(), numbers_on_tests()
    assert [number for number, times in Counter(documented).items() if times > 1] == []
    assert [number for number, times in Counter(tested).items() if times > 1] == []
    assert sorted(documented) == sorted(tested)


def test_sentences_of_one_part_are_numbered_in_order():
    last: dict[str, int] = {}
    for number in numbers_in_the_document():
        part, count = number[0], int(number[1:])
        assert count == last.get(part, 0) + 1, number
        last[part] = count
