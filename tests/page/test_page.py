"""The page, as people see it: a real dispatcher on a real emulator, in a real Chromium.

Screenshots of each situation are left in build/page.
"""

import asyncio
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright, expect

from dispatcher.demo.cloud import free_port
from tests.scenarios.proxy import HOST, Fault, How
from tests.scenarios.world import REGIONS, Dispatcher, World, request, requests, until

PICTURES = Path(__file__).parents[2] / "build" / "page"
PATIENCE_MS = 30_000
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("THE PAGE IS NOT TESTED: no Chromium here; 'make page' fetches one where it can")
    async with async_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = await playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, dispatcher: Dispatcher, *, excuse: tuple[str, ...] = (), **how: Any
) -> AsyncIterator[Page]:
    """The page, live. What its script or its policy complains of fails the test; that a connection is lost does not."""
    complaints: list[str] = []
    page = await browser.new_page(**how)
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    await page.goto(f"http://{HOST}:{dispatcher.port}/")
    await expect(page.locator("#news")).to_have_text("live")
    try:
        yield page
    finally:
        await page.close()
    excused = ("Failed to load resource", "net::", *excuse)
    assert not [line for line in complaints if not any(text in line for text in excused)]


async def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


async def listens(dispatcher: Dispatcher) -> bool:
    with suppress(aiohttp.ClientError):
        return (await dispatcher.get("/healthz"))[0] == 200
    return False


def tile(page: Page, name: str) -> Any:
    return page.locator("#tiles > div", has=page.locator("dt", has_text=name)).locator("dd")


def row(page: Page, region: str) -> Any:
    return page.locator(f'tr[data-region="{region}"]')


async def test_it_tells_what_happens_as_it_happens(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        await expect(page.locator("#regions tr")).to_have_count(len(REGIONS))
        for region in REGIONS:
            await expect(row(page, region)).to_contain_text("0 / 5,000")
            await expect(row(page, region)).to_contain_text("fresh")
            await expect(row(page, region)).to_contain_text("It gets its share of new messages.")
        await expect(tile(page, "Dispatched")).to_contain_text("0 since start")
        await expect(page.locator("#choices")).to_have_text(re.compile("none yet"))
        await world.send([*requests(40), requests(1)[0], '{"bad": true}'])
        await expect(tile(page, "Dispatched")).to_contain_text("40 since start")
        await expect(tile(page, "Duplicates")).to_contain_text("1")
        await expect(tile(page, "Rejected")).to_contain_text("1")
        await expect(tile(page, "Rejected")).to_contain_text("1 dead letter")
        await expect(tile(page, "Age at dispatch")).to_contain_text("95 %")
        await expect(page.locator("#choices li").first).to_contain_text("gpt-l-7b")
        await expect(page.locator("#warnings")).to_contain_text("message.rejected")
        for region in REGIONS:  # they have no workers
            await expect(row(page, region)).to_contain_text("no worker takes one")
        await expect(page.locator("#state")).to_contain_text("running")
        await expect(page.locator("#policy")).to_contain_text("inverse-depth-smoothed, in place of projected-wait")
        await expect(page.locator("#version")).to_contain_text("version")


async def test_anybody_can_read_it(world: World, browser: Browser) -> None:
    """axe finds nothing, in both schemes, on a desk, a tablet and a phone; nothing has to be scrolled sideways."""
    dispatcher = await world.start()
    await world.send(requests(20))
    await world.until_master_is_empty()
    for scheme, width in [("light", 1200), ("dark", 1200), ("light", 820), ("light", 360), ("dark", 360)]:
        size = {"width": width, "height": 800}
        async with opened(browser, dispatcher, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
            await expect(page.locator("#choices li").first).to_contain_text("gpt-l-7b")
            found = (await Axe().run(page)).response["violations"]
            assert not found, [(fault["id"], [node["html"] for node in fault["nodes"]][:3]) for fault in found]
            assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            await picture(page, f"{scheme}-{width}")
            assert await page.locator(".wide").evaluate("table => table.scrollWidth <= table.clientWidth")
            for _ in range(2):  # past the table, which the keyboard can scroll, to the look-up
                await page.keyboard.press("Tab")
            assert await page.evaluate("document.activeElement.id") == "request-id"


async def test_it_shows_an_outage_of_a_region_with_the_reason_and_its_end(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        with world.proxy.having(Fault(How.ERROR, region="eu-west-1", status=403, code="AccessDenied")):
            await world.send(requests(30))
            await expect(page.locator("#warnings")).to_contain_text("AccessDenied")
            await expect(row(page, "eu-west-1")).to_contain_text(re.compile("breaker open|unknown|stale"))
            await expect(row(page, "eu-west-1").locator(".why")).not_to_be_empty()
            await picture(page, "region-out")
        await expect(row(page, "eu-west-1")).to_contain_text("fresh")


async def test_it_says_why_nothing_is_received_and_that_nothing_is_lost(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        with world.proxy.having(Fault(How.ERROR, service="dynamodb", status=500, code="InternalServerError")):
            await world.send(requests(30))
            await expect(page.locator("#banner")).to_contain_text("Nothing is received now: the ledger does not answer")
            await expect(tile(page, "Ledger")).to_contain_text("no answer")
            await expect(page.locator("#warnings")).to_contain_text("InternalServerError")
            await picture(page, "ledger-out")
        await expect(page.locator("#banner")).to_be_hidden()
        await expect(tile(page, "Dispatched")).to_contain_text("30 since start")


async def test_it_says_that_aws_does_not_answer_also_while_nothing_is_asked_of_it(
    world: World, browser: Browser
) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        with world.proxy.having(Fault(How.RESET)):
            await expect(page.locator("#banner")).to_contain_text("the master queue")
            await expect(tile(page, "Ledger")).to_contain_text("no answer")
            await picture(page, "aws-out")
        await expect(tile(page, "Ledger")).to_contain_text("answers")
        await expect(page.locator("#banner")).to_be_hidden()
        assert (await dispatcher.get("/readyz"))[0] == 200, "that tells of the start"


async def test_it_says_that_it_starts_and_what_it_waits_for(world: World, browser: Browser) -> None:
    with world.proxy.having(Fault(How.RESET)):
        for processes in ("2", "1"):
            dispatcher = await world.start(ready=False, PROCESSES=processes)
            await until(partial(listens, dispatcher), "a page")
            async with opened(browser, dispatcher) as page:
                if processes == "2":  # none of them has said a word
                    await expect(page.locator("#banner")).to_have_text("It is starting: nothing is received yet.")
                    await expect(tile(page, "Ledger")).to_contain_text("unknown")
                await expect(page.locator("#banner")).to_contain_text("No answer from the master queue")
            await dispatcher.kill()


async def test_it_finds_a_request(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    await world.send([request("order 7/é?&#")])
    await world.until_master_is_empty()
    async with opened(browser, dispatcher) as page:
        found = page.locator("#found")
        await page.get_by_label("Request id").fill("  order 7/é?&# ")
        await page.get_by_role("button", name="Look up").click()
        await expect(found).to_contain_text("order 7/é?&#: dispatched")
        await expect(found).to_contain_text("as SQS message")
        await picture(page, "found")
        await page.get_by_label("Request id").fill("<img src=x onerror=alert(1)>")
        await page.get_by_label("Request id").press("Enter")
        await expect(found).to_contain_text("knows no such request")
        with world.proxy.having(Fault(How.ERROR, "GetItem", status=400, code="AccessDeniedException")):
            await page.get_by_role("button", name="Look up").click()
            await expect(found).to_contain_text("cannot be asked now")


async def test_it_survives_a_restart_of_the_daemon_and_says_so_meanwhile(world: World, browser: Browser) -> None:
    port = str(free_port())
    first = await world.start(HTTP_PORT=port)
    async with opened(browser, first) as page:
        await first.kill()
        await expect(page.locator("#news")).to_have_text("not connected")
        await expect(page.locator("#banner")).to_contain_text("The connection is lost; trying again. What is below was")
        await picture(page, "lost")
        second = await world.start(HTTP_PORT=port)
        await world.send(requests(5))
        await expect(page.locator("#news")).to_have_text("live")
        await expect(tile(page, "Dispatched")).to_contain_text("5 since start")
        await expect(page.locator("#banner")).to_be_hidden()
        await second.drain()


async def test_a_daemon_that_stands_still_is_not_shown_as_if_it_ran(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        dispatcher.signal(signal.SIGSTOP)
        await expect(page.locator("#news")).to_have_text("no news")
        await expect(page.locator("#banner")).to_contain_text("The dispatcher sends nothing. What is below was true at")
        dispatcher.signal(signal.SIGCONT)
        await expect(page.locator("#news")).to_have_text("live")


async def test_somebody_else_s_text_stays_text_and_no_script_of_theirs_runs(world: World, browser: Browser) -> None:
    evil = "</span><script>window.hit=1</script><img src=x onerror='window.hit=1'>"
    dispatcher = await world.start()
    async with opened(browser, dispatcher, excuse=("Content Security Policy",)) as page:
        await world.send([request("e", model_name=evil)])
        await expect(page.locator("#choices li").first).to_contain_text("<script>window.hit=1</script>")
        blocked = await page.evaluate(
            """() => new Promise((resolve) => {
                document.addEventListener("securitypolicyviolation", (event) => resolve(event.violatedDirective));
                const policy = trustedTypes.createPolicy("test", { createHTML: (text) => text });
                const theirs = policy.createHTML("<b style='color:red' onclick='1'>x</b>");
                document.body.insertAdjacentHTML("beforeend", theirs);
                setTimeout(() => resolve("nothing"), 3000);
            })"""
        )
        assert blocked.startswith(("style-src", "script-src"))
        assert await page.evaluate("window.hit") is None


async def test_pages_that_are_open_hold_no_drain_up(world: World, browser: Browser) -> None:
    dispatcher = await world.start()
    async with opened(browser, dispatcher) as page:
        await world.send(requests(5))
        await world.until_master_is_empty()
        assert await dispatcher.drain() == 0
        await expect(page.locator("#news")).to_have_text("not connected")


async def test_everybody_who_asks_gets_the_same_until_there_are_too_many(world: World) -> None:
    dispatcher = await world.start()
    url = f"http://{HOST}:{dispatcher.port}/events"
    open_now = [await world.session.get(url) for _ in range(20)]
    try:
        lines = [await stream.content.readuntil(b"\n\n") for stream in open_now[:3]]
        assert lines == [b"retry: 1000\n\n"] * 3
        first, second = [await stream.content.readuntil(b"\n\n") for stream in open_now[:2]]
        assert first.startswith(b"data: {")
        assert first[:40] == second[:40]
        async with world.session.get(url) as one_more:
            assert one_more.status == 503
            assert "pages are open already" in await one_more.text()
    finally:
        for stream in open_now:
            stream.close()
    await asyncio.sleep(0)

    async def again() -> bool:
        async with world.session.get(url) as stream:
            return stream.status == 200

    await until(again, "those who left make room")
