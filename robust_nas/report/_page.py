"""The frame of a page, and the pieces that all its sections use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_nas.report._contents import Measurements, Rated
from robust_nas.report._elements import Content, Html, element, join, security_policy
from robust_nas.report._style import STYLE
from robust_nas.report.findings import enumerate_in_words, percent
from robust_nas.runtime.environment import differing

if TYPE_CHECKING:
    from robust_nas.records import EnvironmentRecord
    from robust_nas.records.run import Session

DASH = "\N{EN DASH}"
EPSILON = "\N{GREEK SMALL LETTER EPSILON}"


def frame(contents: Measurements, header: Html, sections: Sequence[tuple[str, Content]]) -> Html:
    """Return the whole page of a folder; a section without content is left out."""
    return whole_page(
        contents.path.resolve().name, contents.environment.version if contents.environment else "", header, sections
    )


def whole_page(name: str, version: str, header: Html, sections: Sequence[tuple[str, Content]]) -> Html:
    """Return the whole page about a folder of this name, by this version of robust-nas."""
    titled = [(title, title.lower().replace(" ", "-"), body) for title, body in sections if body is not None]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        security_policy(),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name} {DASH} robust-nas"),
        element("style", Html(STYLE)),
    )
    links = [element("li", element("a", title, href=f"#{key}")) for title, key, _ in titled]
    body = element(
        "body",
        header,
        element("nav", element("ul", links), aria_label="Contents"),
        element(
            "main",
            [
                element(
                    "section", element("h2", title, id=f"{key}-title"), content, id=key, aria_labelledby=f"{key}-title"
                )
                for title, key, content in titled
            ],
        ),
        element("footer", f"Written by robust-nas {version} from the files in {name}."),
    )
    return Html(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n")


def facts_line(contents: Measurements, *facts: str) -> Html:
    """Return the line under the title: the folder's name, some facts, and the versions and time of its making."""
    named, environment = [contents.path.resolve().name, *facts], contents.environment
    if environment is not None:
        began = environment.sessions[0].started.replace("T", " ").replace("+00:00", " UTC")
        named += [f"robust-nas {environment.version}", environment.device, began]
    return element("p", " \N{MIDDLE DOT} ".join(fact for fact in named if fact), class_="facts")


def environment_facts(environment: EnvironmentRecord | None) -> dict[str, str]:
    """Return the facts of environment.json, in words; none, if there is no such file."""
    if environment is None:
        return {}
    return {
        "robust-nas": f"{environment.version}, commit {environment.commit or 'unknown'}",
        "Python": environment.python,
        "Packages": ", ".join(f"{name} {version}" for name, version in environment.packages.items()),
        "Device": environment.device,
        "Processor": f"{environment.cpu}, {environment.cores} cores",
        "Processes": str(environment.world_size),
        "Arguments": " ".join(environment.arguments),
        "Started": environment.started,
        **_earlier(environment.sessions),
    }


def _earlier(found: Sequence[Session]) -> dict[str, str]:
    """Return when what was interrupted went on, and on what, if that was not the same throughout."""
    if len(found) < 2:
        return {}
    kinds = differing(found)
    facts = {"Sessions": f"{len(found)}, begun at {', '.join(each.started for each in found)}"}
    if len(kinds) > 1:
        facts["Beware"] = (
            "the sessions were on different machines or versions, which round differently, so that the numbers are not "
            f"those of one machine to the last digit: {'; then '.join(kinds)}"
        )
    return facts


def setup(contents: Measurements, file: str, facts: dict[str, str], seconds: dict[str, float]) -> Html:
    """Return the settings, word for word, beside the environment and how long everything took; all folded away."""
    times = {what.capitalize(): duration(value) for what, value in seconds.items()}
    spent = [element("h3", "Time", style="margin-top:1.6rem"), definitions(times)] if times else None
    within = [f"All settings ({file}, {len(contents.config_text.splitlines())} lines)"]
    within += ["versions and hardware"] if facts else []
    within += [f"the time of {'each stage' if len(times) > 1 else 'the attacks'}"] if times else []
    inside = element(
        "div",
        element("div", element("h3", f"Configuration ({file})"), element("pre", contents.config_text)),
        element("div", element("h3", "Environment"), definitions(facts), spent),
        class_="two",
    )
    return element("details", element("summary", enumerate_in_words(within)), inside, class_="setup")


def attack_seconds(contents: Measurements) -> float:
    """Return the duration of all attacks in the table."""
    return sum(attack.seconds for result in contents.attacked.values() for attack in result.attacks)


def explained(rows: Sequence[tuple[str, str]]) -> Html:
    """Return pairs (subject, a sentence or two) as a list."""
    return element("dl", [[element("dt", about), element("dd", text)] for about, text in rows], class_="limits")


def unbroken(sentence: str) -> str:
    """Return a sentence whose numbers stay on one line with their percent signs."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")


def scroll(content: Content, name: str) -> Html:
    """Return a box that scrolls sideways, by keyboard too."""
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=name)


def column_head(text: str, *, left: bool = False) -> Html:
    """Return a column's head; without a text, an empty cell."""
    return element("th" if text else "td", text, scope="col" if text else None, class_="left" if left else None)


def interval_of(item: Rated) -> Html:
    """Return an accuracy's interval in percent, its ends joined by a dash, after which a printed line may end."""
    return join([f"{percent(item.low)}{DASH}", element("wbr"), percent(item.high)])


def definitions(facts: dict[str, str]) -> Content:
    """Return terms and what they mean as a list, nothing if there are none."""
    return element("dl", [[element("dt", key), element("dd", text)] for key, text in facts.items()]) if facts else None


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
