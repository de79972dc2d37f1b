"""The report in a real browser: no console error, filters that filter, outlines that can be hidden."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.report import ReportData, write_report
from pipeline.report.data import (
    CaptionCard,
    CostRow,
    EventBar,
    FunnelRow,
    Histogram,
    Picture,
    RatePoint,
    RegionCard,
)
from pipeline.report.pictures import thumbnail

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def card(number: int) -> RegionCard:
    kept = number % 2 == 0
    source = ("coco", "lvis", "sav")[number % 3]
    caption = CaptionCard(
        task=("brief", "detailed")[number % 2],
        language="en",
        event_index=-1,
        text=f"region number {number} </script><script>throw 1</script>",
        status="ok" if kept else "filtered",
        reasons=[] if kept else ["repetition"],
    )
    return RegionCard(
        region_key=f"{number:032x}",
        source=source,
        source_id=str(number),
        label="cup",
        kind="image",
        kept=kept,
        tasks=[caption.task],
        reasons=caption.reasons,
        picture=Picture(uri=PIXEL, width=100, height=80, mask="M1 1L50 1L50 50Z", box="M0 0H50V50H0Z"),
        duration_s=4.0,
        events=[
            EventBar(index=0, start_s=0, end_s=2, absent=False),
            EventBar(index=1, start_s=2, end_s=4, absent=True),
        ],
        captions=[caption],
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    data = ReportData(
        title="A report <b>",
        run="runs/x",
        funnel=[FunnelRow(stage="refine", rows_in=200, ok=150, filtered=50)],
        histograms=[
            Histogram(
                name="stability", group="masks", edges=[0, 0.5, 1], counts=[3, 4], bounds=[("unstable min", 0.75)]
            )
        ],
        costs=[
            CostRow(name="openai · gpt-4o", requests=12, prompt_tokens=3400, completion_tokens=560, actual_usd=1.25),
            CostRow(name="planned 2026-01-01", planned_usd=1.5),
        ],
        rates=[RatePoint(stage="refine", seconds=second, rows=40 * second) for second in range(5)],
        regions=[card(number) for number in range(200)],
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(data, path)
    return path


def browse(page: Path, profile: Path, *flags: str, fragment: str = "") -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--window-size=1280,1600", "--virtual-time-budget=2000", *flags,
        page.as_uri() + fragment,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    return done


def shown(dom: str) -> dict[str, bool]:
    """Region key of each card and whether it is visible, in the page after its script has run."""
    cards = re.findall(r"<article [^>]*>", dom)
    return {re.search(r'id="(\w{32})"', tag).group(1): " hidden" not in tag for tag in cards}


def dom(page: Path, tmp_path: Path, fragment: str) -> str:
    return browse(page, tmp_path / "profile", "--dump-dom", fragment=fragment).stdout


def test_it_opens_without_a_console_error_and_shows_everything(page, tmp_path):
    found = dom(page, tmp_path, "")
    assert list(shown(found).values()) == [True] * 200
    assert "200 of 200" in found


def test_limits_of_the_policy_money_and_pace_are_drawn(page, tmp_path):
    found = dom(page, tmp_path, "")
    section = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', found, re.DOTALL))
    assert set(section) >= {"funnel", "reasons", "distributions", "cost", "gallery"}
    (limit,) = re.findall(r'<line class="bound" x1="([\d.]+)"[^>]*><title>([^<]*)</title>', section["distributions"])
    assert limit == ("150.00", "unstable min")
    cells = [
        re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>.*?</tr>", section["cost"], re.DOTALL)
    ]
    head, spent, planned = cells
    assert (head[4], head[5]) == ("planned", "spent")
    assert spent[:4] == ["openai · gpt-4o", "12", "3400", "560"]
    assert "1.25" in spent[5]
    assert "1.50" in planned[4]
    (line,) = re.findall(r'<polyline points="([^"]+)"', section["cost"])
    assert line.split() == ["0,60", "0.00,60.00", "50.00,45.50", "100.00,31.00", "150.00,16.50", "200.00,2.00"]
    assert "160 rows in 4.0 s" in section["cost"]


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("#fate=rejected", {n for n in range(200) if n % 2}),
        ("#source=lvis&fate=kept", {n for n in range(200) if n % 3 == 1 and n % 2 == 0}),
        ("#reason=repetition&task=detailed&source=sav", {n for n in range(200) if n % 2 and n % 3 == 2}),
        ("#text=Number 17", {17, *range(170, 180)}),
    ],
)
def test_filters_show_what_they_say(page, tmp_path, fragment, expected):
    found = dom(page, tmp_path, fragment)
    visible = {int(key, 16) for key, visible in shown(found).items() if visible}
    assert visible == expected
    assert f"{len(expected)} of 200" in found


def test_outlines_can_be_hidden(page, tmp_path):
    assert 'id="cards" class="no-mask"' in dom(page, tmp_path, "#mask=off")
    assert 'id="cards" class="no-box"' in dom(page, tmp_path, "#box=off")


WATCH = """
const told = { forced: 0 };
for (const [owner, name] of [
  [HTMLElement.prototype, "offsetHeight"], [HTMLElement.prototype, "offsetWidth"], [HTMLElement.prototype, "offsetTop"],
  [Element.prototype, "clientHeight"], [Element.prototype, "clientWidth"], [Element.prototype, "scrollHeight"],
  [Element.prototype, "scrollTop"], [HTMLElement.prototype, "innerText"],
]) {
  const of = Object.getOwnPropertyDescriptor(owner, name);
  Object.defineProperty(owner, name, { ...of, get() { told.forced += 1; return of.get.call(this); } });
}
for (const [owner, name] of [[Element.prototype, "getBoundingClientRect"], [window, "getComputedStyle"]]) {
  const of = owner[name];
  owner[name] = function (...given) { told.forced += 1; return of.apply(this, given); };
}
const watched = new MutationObserver(() => {});
watched.observe(document.getElementById("cards"), { subtree: true, childList: true, attributes: true });
const choose = (name, value) => {
  const field = document.forms.filters.elements[name], before = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  const ms = performance.now() - before, changes = watched.takeRecords();
  return {
    ms, hash: location.hash, changes: changes.map((each) => `${each.type} ${each.attributeName}`),
    cards: new Set(changes.map((each) => each.target)).size, said: document.getElementById("shown").value,
    hidden: [...document.querySelectorAll("article")].filter((card) => !card.checkVisibility()).map((card) => card.id),
  };
};
told.steps = STEPS.map(([name, value]) => choose(name, value));
document.body.dataset.told = JSON.stringify(told);
"""


def acted(page: Path, tmp_path: Path, *steps: tuple[str, str]) -> dict:
    """What a reader's choices in the filters do to the page, told by a script at its end; each is one `input` event."""
    script = f"<script>{{{WATCH.replace('STEPS', json.dumps(steps))}}}</script></body>"
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text("utf-8").replace("</body>", script), "utf-8")
    (told,) = re.findall(r'data-told="([^"]*)"', browse(watched, tmp_path / "profile", "--dump-dom").stdout)
    return json.loads(html.unescape(told))


def test_a_choice_hides_cards_at_once_and_is_kept_in_the_address(page, tmp_path):
    steps = acted(page, tmp_path, ("fate", "rejected"), ("source", "lvis"), ("fate", ""), ("source", ""))["steps"]
    hidden = [{int(key, 16) for key in step["hidden"]} for step in steps]
    every = set(range(200))
    assert hidden[0] == {n for n in every if n % 2 == 0}
    assert hidden[1] == every - {n for n in every if n % 2 and n % 3 == 1}
    assert hidden[2] == {n for n in every if n % 3 != 1}
    assert hidden[3] == set()
    assert [step["hash"] for step in steps] == ["#fate=rejected", "#fate=rejected&source=lvis", "#source=lvis", ""]
    assert steps[0]["said"] == "100 of 200"


def test_a_filter_over_200_real_pictures_writes_only_what_changes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    cards = []
    for number in range(200):
        coarse = rng.integers(0, 255, (9, 12, 3), np.uint8)
        pixels = cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC)
        cards.append(card(number).model_copy(update={"picture": thumbnail(pixels, 360, box=(30, 40, 200, 300))}))
    write_report(ReportData(title="t", run="r", regions=cards), tmp_path / "heavy.html")
    told = acted(tmp_path / "heavy.html", tmp_path, ("fate", "rejected"), ("source", "lvis"), ("view", "paired"))
    narrow, narrower, paired = told["steps"]
    assert narrow["changes"] == ["attributes hidden"] * 100
    assert narrow["cards"] == 100
    assert narrower["changes"] == ["attributes hidden"] * len([n for n in range(200) if n % 2 and n % 3 != 1])
    assert paired["changes"] == []
    assert told["forced"] == 0, "the script asks for no layout"
    with capsys.disabled():
        size = (tmp_path / "heavy.html").stat().st_size / 1e6
        print(
            f" a choice over 200 cards, {size:.1f} MB: " + ", ".join(f"{step['ms']:.1f} ms" for step in told["steps"])
        )


def test_kept_and_rejected_stand_side_by_side(page, tmp_path):
    look = """
    const box = (card) => { const found = card.getBoundingClientRect(); return [found.left, found.right, found.top]; };
    const seen = {};
    for (const fate of ["kept", "rejected"]) seen[fate] = [...document.querySelectorAll(`.card.${fate}`)].map(box);
    seen.heads = [...document.querySelectorAll("#heads h3")].map((head) => [...box(head), head.textContent]);
    document.body.dataset.told = JSON.stringify(seen);
    """
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text("utf-8").replace("</body>", f"<script>{{{look}}}</script></body>"), "utf-8")
    found = browse(copy, tmp_path / "profile", "--dump-dom", fragment="#view=paired").stdout
    seen = json.loads(html.unescape(re.search(r'data-told="([^"]*)"', found).group(1)))
    kept, rejected = seen["kept"], seen["rejected"]
    assert len(kept) == len(rejected) == 100
    assert max(right for _, right, _ in kept) < min(left for left, _, _ in rejected)
    assert [top for *_, top in kept] == [top for *_, top in rejected], "in rows"
    assert [text for *_, text in seen["heads"]] == ["kept 100", "rejected 100"]
    assert [head[0] for head in seen["heads"]] == [kept[0][0], rejected[0][0]]


def test_it_can_be_pictured(page, tmp_path):
    browse(page, tmp_path / "profile", f"--screenshot={tmp_path / 'shot.png'}")
    from PIL import Image

    picture = Image.open(tmp_path / "shot.png").convert("RGB")
    assert picture.size == (1280, 1600)
    assert len(picture.resize((64, 80)).getcolors(64 * 80)) > 20
