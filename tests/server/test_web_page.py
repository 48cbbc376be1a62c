"""The web page in a real browser: chat, settings, stopping, markdown and API key."""

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmctl.engine.chat.response_delta import ResponseDelta
from tests.fakes import FakeEngine
from tests.server.servers import running_server, wait_until

webdriver = pytest.importorskip("selenium.webdriver")

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    BROWSER is None or shutil.which("chromedriver") is None,
    reason="needs Chromium and chromedriver",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,700"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def open_page(browser: Any, url: str) -> None:
    browser.get(url)
    assert wait_until(lambda: find(browser, "#model").get_property("value") == "fake-model")


def send(browser: Any, text: str) -> None:
    find(browser, "#text").send_keys(text + "\n")


def last_reply(browser: Any) -> Any:
    return browser.find_elements("css selector", ".assistant")[-1]


def idle(browser: Any) -> bool:
    return bool(find(browser, "#send").text == "Send")


def test_the_second_request_includes_the_first_turn(browser: Any) -> None:
    engine = FakeEngine(("**Hel", "lo** `x`", "\n\n```py\nif a < b: pass\n```\n- one\n- two"))
    with running_server(engine) as url:
        open_page(browser, url)
        send(browser, "Hi")
        assert wait_until(lambda: "tokens" in find(browser, "main").text)
        reply = last_reply(browser)
        assert reply.find_element("css selector", "strong").text == "Hello"
        assert reply.find_element("css selector", "pre").text == "if a < b: pass"
        assert len(reply.find_elements("css selector", "li")) == 2
        send(browser, "And?")
        assert wait_until(lambda: len(engine.requests) == 2)
        assert wait_until(lambda: idle(browser))
    assert [m.role for m in engine.requests[1].messages] == ["user", "assistant", "user"]
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []


def test_settings_reach_the_engine(browser: Any) -> None:
    engine = FakeEngine()
    with running_server(engine) as url:
        open_page(browser, url)
        find(browser, "#toggle").click()
        find(browser, "#system").send_keys("Be brief.")
        find(browser, "#temperature").send_keys("0.3")
        find(browser, "#max_tokens").send_keys("9")
        send(browser, "Hi")
        assert wait_until(lambda: len(engine.requests) == 1)
    request = engine.requests[0]
    assert (request.messages[0].role, request.messages[0].content) == ("system", "Be brief.")
    assert (request.sampling.temperature, request.sampling.max_new_tokens) == (0.3, 9)
    assert request.sampling.top_p is None


def test_stop_keeps_the_partial_reply_and_cancels_the_request(browser: Any) -> None:
    engine = FakeEngine(("Begun", " never"), hold=threading.Event())
    with running_server(engine) as url:
        open_page(browser, url)
        send(browser, "Hi")
        assert wait_until(lambda: "Begun" in find(browser, "main").text)
        find(browser, "#send").click()
        assert wait_until(lambda: "stopped" in find(browser, "main").text)
        assert last_reply(browser).text == "Begun"
        assert wait_until(lambda: engine.in_flight == 0)


def test_generated_text_is_never_html(browser: Any) -> None:
    attack = '<img src=x onerror="document.title=1"> <script>document.title=2</script>'
    link = "[x](javascript:alert(1)) [y](https://a.example/?q=<b>)"
    with running_server(FakeEngine((attack, link))) as url:
        open_page(browser, url)
        title = browser.title
        send(browser, attack)
        assert wait_until(lambda: "javascript" in find(browser, "main").text)
        assert browser.find_elements("css selector", ".turn img, .turn script") == []
        links = browser.find_elements("css selector", ".turn a")
        assert all(a.get_attribute("href").startswith("https://") for a in links)
        assert browser.title == title


def test_reasoning_is_in_a_closed_details_element(browser: Any) -> None:
    with running_server(FakeEngine((ResponseDelta(reasoning="Hm."), "Yes."))) as url:
        open_page(browser, url)
        send(browser, "Hi")
        assert wait_until(lambda: "tokens" in find(browser, "main").text)
        assert find(browser, "details summary").text == "Reasoning"
        assert find(browser, "details").get_attribute("open") is None


def test_the_page_asks_for_a_missing_key(browser: Any) -> None:
    with running_server(FakeEngine(), api_keys=("secret",)) as url:
        browser.get(url)
        assert wait_until(lambda: "API key" in find(browser, "main .error").text)
        key = find(browser, "#key")
        key.send_keys("secret\t")
        assert wait_until(lambda: find(browser, "#model").get_property("value") == "fake-model")
        key.clear()


def test_the_page_loads_no_external_resource() -> None:
    with running_server(FakeEngine()) as url:
        page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert 'src="' not in page.text
    assert "@import" not in page.text
