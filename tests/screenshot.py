"""Makes docs/screenshot.png anew: `python -m tests.screenshot`, with ports 8000 and 8001 free."""

from __future__ import annotations

import base64
import importlib
import tempfile
from typing import Any

from tests.browsers import CHROMIUM
from tests.example import HOST, PROJECT, Program

PICTURE = PROJECT.parent / "docs" / "screenshot.png"
WINDOW = {"width": 600, "height": 640}
PORTS = {"Ada Lovelace": 8000, "Grace Hopper": 8001}

CONVERSATION = (
    ("Grace Hopper", "Morning! Did the deploy go through?"),
    ("Ada Lovelace", "It did: two Daphne processes and a worker, all on one Valkey."),
    ("Ada Lovelace", "You are on the second server, by the way. I am on the first."),
    ("Grace Hopper", "I would not have noticed. Who else is here?"),
    ("Ada Lovelace", "Just the two of us. It is asked, not stored: if I were killed, you would know."),
)

FRAME = """<!doctype html><style>
body { margin: 0; padding: 24px; display: flex; gap: 24px; background: #cfd8d5; font: 13px system-ui; }
figure { margin: 0; border-radius: 10px; overflow: hidden; box-shadow: 0 8px 30px rgb(0 0 0 / .25); }
figcaption { display: flex; align-items: center; gap: 7px; padding: 8px 14px; background: #e7e5df; color: #555; }
i { width: 11px; height: 11px; border-radius: 50%; background: #c3c0b8; }
b { flex: 1; margin: 0 20px 0 14px; padding: 4px 12px; border-radius: 99px; background: #fff; font-weight: 400; }
img { display: block; }
</style>"""


def in_a_window(page: Any) -> str:
    picture = base64.b64encode(page.screenshot()).decode()
    address = page.url.removeprefix("http://")
    return (
        f"<figure><figcaption><i></i><i></i><i></i><b>{address}</b></figcaption>"
        f'<img width="{WINDOW["width"]}" src="data:image/png;base64,{picture}"></figure>'
    )


def main() -> None:
    playwright = importlib.import_module("playwright.sync_api")
    with (
        tempfile.TemporaryDirectory() as folder,
        Program("manage.py", "demo", environment={"CHAT_DATABASE": f"{folder}/chat.sqlite3"}) as demo,
        playwright.sync_playwright() as driver,
    ):
        demo.wait_for("Ctrl-C stops everything")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        options = {"device_scale_factor": 1.5, "locale": "en-GB", "color_scheme": "light"}
        pages = {}
        for name, port in PORTS.items():
            page = browser.new_context(viewport=WINDOW, **options).new_page()
            page.add_init_script(f"localStorage.setItem('name', {name!r})")
            page.goto(f"http://{HOST}:{port}/chat/lobby/")
            pages[name] = page
        for page in pages.values():
            playwright.expect(page.locator("#here .who")).to_have_count(2, timeout=20_000)
        for number, (name, text) in enumerate(CONVERSATION, 1):
            pages[name].fill("#message", text)
            pages[name].press("#message", "Enter")
            for page in pages.values():
                playwright.expect(page.locator("#log .message")).to_have_count(number)
        words = sum(len(text.split()) for _, text in CONVERSATION)
        for page in pages.values():
            playwright.expect(page.locator("#tally")).to_have_text(f"{words} words")
        pages["Grace Hopper"].type("#message", "Then I send the next one from a sync view")
        playwright.expect(pages["Ada Lovelace"].locator("#typing")).to_have_text("Grace Hopper is typing…")
        sheet = browser.new_context(viewport={"width": 1272, "height": 100}, **options).new_page()
        sheet.set_content(FRAME + "".join(map(in_a_window, pages.values())))
        PICTURE.write_bytes(sheet.screenshot(full_page=True))
        browser.close()


if __name__ == "__main__":
    main()
