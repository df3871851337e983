"""The README and the pages of examples/: links, index, results, length, and Python examples that run as written.

Commands are checked by test_command_lines.py and test_examples.py, reading lists by test_reading_lists.py.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

import capfilt

ROOT = Path(capfilt.__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "examples").glob("*.md")), ROOT / "tests" / "golden" / "README.md"]
MAX_WORDS = 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it names old paths too")
    names = re.findall(
        r"(?<![\w/.])(?:capfilt|blipcore|tests)/[\w/]+\.(?:py|sh|md)\b", page.read_text(encoding="utf-8")
    )
    assert [name for name in names if "NAME" not in name and not (ROOT / name).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".md", ".sh", ".yaml", "")}
    assert {name for name in pages - {"README.md"} if f"]({name})" not in index} == set()


def test_the_readme_stays_short() -> None:
    assert len(re.findall(r"\S*[A-Za-z]\S*", README)) <= MAX_WORDS


def table_rows(text: str, header: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table by the first cell of each row; `header` is the start of its first line."""
    table = text[text.index(header) :].partition("\n\n")[0].replace("*", "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: cells for first, *cells in rows[2:]}


def test_results_in_the_readme_are_means_of_both_seeds_and_half_their_difference() -> None:
    summary = table_rows(README, "| trained on |")
    details = table_rows((ROOT / "examples" / "demo.md").read_text(encoding="utf-8"), "| trained on |")
    assert list(summary) == list(details)
    for row, cells in summary.items():
        for column, cell in zip((0, 1, 5), cells, strict=True):
            mean, half = map(float, cell.split(" ± "))
            first, second = map(float, details[row][column].split(" / "))
            assert mean == pytest.approx((first + second) / 2, abs=0.051), (row, cell)
            assert half == pytest.approx(abs(first - second) / 2, abs=0.051), (row, cell)


PYTHON = (ROOT / "examples" / "python.md").read_text(encoding="utf-8")
EXAMPLES = [part.split("```")[0] for part in PYTHON.split("```python\n")[1:]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the models (random weights) and the picture that the examples open."""
    from blipcore.checkpoints.load import TASK_PARTS
    from blipcore.checkpoints.save import save_model
    from blipcore.model.blip import Blip
    from blipcore.model.tokenizer import Tokenizer
    from blipcore.train.runs import model_config

    folder = tmp_path_factory.mktemp("readme")
    tokenizer = Tokenizer.train(["a picture of a dog"] * 3, vocab_size=100)
    model = Blip(model_config("tiny", {}, len(tokenizer)))
    for name, task in (("captioner", "caption"), ("filter", "retrieval"), ("vqa", "vqa")):
        save_model(folder / "runs" / name / "model", model.select_parts(*TASK_PARTS[task]), tokenizer)
    Image.new("RGB", (60, 40), "red").save(folder / "picture.jpg")
    return folder


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_python_examples_run(
    code: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(models)
    exec(compile(code, "python.md", "exec"), {})
    assert capsys.readouterr().out.strip()
