"""docs/ai-tokens.md: the app of the page, served for real, with a worker, a task and a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from channels_asyncq.testing import EmbeddedServer
from tests.code_blocks import files
from tests.page_sites import DOCS, PageSite, python
from tests.test_resume_browser import browser
from tests.test_resume_browser import pytestmark as marks_of_browsers

__all__ = ["browser"]

pytestmark = [
    *marks_of_browsers,
    pytest.mark.skipif(not DOCS.is_dir(), reason="only the package is here, without its pages"),
]

URLS = """\
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from answers import views

views.ask = csrf_exempt(views.ask)  # its form is not on the page
urlpatterns = [path("answers/", include("answers.urls"))]
"""

#: So many words that the answer takes longer than a new start of the server.
QUESTION = " ".join(f"word{n}" for n in range(200))
BEGIN = "This is no language model. It says again what it was asked: "

#: Whether a page has asked for the stored text.
HAS_WAITED = "performance.getEntriesByType('resource').some(({ name }) => name.endsWith('/whole/'))"


@pytest.fixture
def site(tmp_path: Path, redis_server: EmbeddedServer, prefix: str) -> Iterator[PageSite]:
    pytest.importorskip("celery")
    config = json.dumps({"hosts": [redis_server.url], "prefix": prefix})
    site = PageSite(tmp_path, files("docs/ai-tokens.md"), URLS, config)
    with (tmp_path / "tested_settings.py").open("a") as settings:
        settings.write('ASGI_APPLICATION = "asgi.application"\n')
    site.start()
    yield site
    site.stop()


def ask(context: Any, site: PageSite, question: str) -> int:
    """Ask for an answer; return its number."""
    answer = context.request.post(site.url("answers/ask/"), form={"question": question})
    assert answer.status == 200
    return int(answer.url.rstrip("/").rpartition("/")[2])


def shows(page: Any, words: str) -> None:
    """Wait until a page has come as far as these words."""
    page.wait_for_function(
        "(words) => document.getElementById('answer').textContent.includes(words)", arg=words
    )


def is_whole(page: Any, text: str) -> None:
    """Wait for the end of the answer; it has every word, once and in order."""
    page.wait_for_function("document.getElementById('answer').ariaBusy !== 'true'")
    assert page.text_content("#answer") == text


def test_no_word_is_missed(browser: Any, site: PageSite) -> None:
    """
    A page that is open while the server restarts, one that is loaded in the middle, and one that is opened at the
    end have all words, from the worker.
    """
    worker = site.program("-m", "django", "runworker", "answers")
    context = browser.new_context()
    context.set_default_timeout(60_000)
    pages = [context.new_page() for _ in range(3)]
    number = ask(context, site, QUESTION)
    pages[0].goto(site.url(f"answers/{number}/"))
    shows(pages[0], "word5 ")
    site.stop()
    site.start()
    pages[1].goto(site.url(f"answers/{number}/"))
    shows(pages[1], "word0 ")
    text = f"{BEGIN}{QUESTION} "
    for page in pages[:2]:
        is_whole(page, text)
        assert not page.evaluate(HAS_WAITED)  # all of it came by the stream
    pages[2].goto(site.url(f"answers/{number}/"))
    is_whole(pages[2], text)
    worker.__exit__(None, None, None)
    assert "Traceback" not in worker.output
    context.close()


def test_lost_words_are_waited_for(browser: Any, site: PageSite, redis_server: EmbeddedServer) -> None:
    """Where the layer has the words no more, the page waits for the text that a task of Celery stores."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    page = context.new_page()
    number = ask(context, site, "Why?")  # nobody takes this job
    flush = "from asgiref.sync import async_to_sync; from channels_asyncq import get_layer; "
    site.run(*python(f"{flush}async_to_sync(get_layer().flush)()"))
    page.goto(site.url(f"answers/{number}/"))
    page.wait_for_function(HAS_WAITED)
    site.run(*python(f"from answers.tasks import answer; answer.apply(args=[{number}]).get()"))
    is_whole(page, f"{BEGIN}Why? ")
    context.close()


FAILURE = """
from asgiref.sync import async_to_sync
from answers import write
from answers.models import Answer

async def words(question):
    yield "It "
    raise ValueError("the model failed")

write.words = words
answer = Answer.objects.create(question="Why?")
try:
    async_to_sync(write.write)(answer.pk)
except ValueError as error:
    answer.refresh_from_db()
    print(error, answer.text, answer.is_whole)
"""


def test_the_model_fails(tmp_path: Path) -> None:
    """The answer ends with what came before, so that no page waits for ever; the caller hears of the failure."""
    site = PageSite(tmp_path, files("docs/ai-tokens.md"), URLS, json.dumps({"hosts": ["memory://"]}))
    assert site.run(*python(FAILURE)) == "the model failed It  True\n"


def test_every_block_is_a_file_of_the_site() -> None:
    """The page has the whole app."""
    site = files("docs/ai-tokens.md")
    assert len(site) == 11
    assert {"settings.py", "asgi.py", "answers/worker.py", "answers/tasks.py"} < set(site)
