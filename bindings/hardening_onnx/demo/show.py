"""The demo's findings for people. Every sentence that draws a conclusion is chosen by the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from hardening.audit.extraction import Extraction, wilson
from hardening.cli.alarms import odds
from hardening.clients.evidence import chance
from hardening.types import Guarantee
from hardening_onnx.demo.story import Story
from hardening_onnx.demo.thief import BARE
from hardening_onnx.demo.watch import ADDED, FALSE_ALARM, Watched

_STYLES = {BARE: "red", "normal": "green", "suspect": "yellow", "label": "cyan"}
_WIDEST = 100

NEXT = (
    ("hardening init model.onnx -o policy.toml", "write a policy for it"),
    ("hardening check policy.toml", "validate it"),
    ("hardening explain policy.toml", "what each tier promises"),
    ("hardening serve model.onnx --policy policy.toml", "answer over gRPC"),
)


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", style=_STYLES.get(column))
    return table


def _name(tier: str) -> Text:
    return Text(tier, _STYLES.get(tier, ""))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def show(story: Story, console: Console) -> None:
    """Print the whole story, no wider than 100 columns."""
    console.width = min(console.width, _WIDEST)
    for number, (title, part) in enumerate(_PARTS.items()):
        if number:
            console.print()
            console.rule(f"[bold]{number}  {title}[/bold]", align="left", style="dim")
        part(story, console)
    console.print()
    steps = Table.grid(padding=(0, 2))
    for command, why in NEXT:
        steps.add_row(f"[bold green]{command}[/bold green]", why)
    console.print(Panel(steps, title="[bold]next, with your own model[/bold]", title_align="left", expand=False))
    console.print("In Python:")
    console.print('session = hardening_onnx.wrap("model.onnx", hardening.load_policy("policy.toml"))', soft_wrap=True)


def _opening(story: Story, console: Console) -> None:
    text = (
        f"[bold]{story.model}[/bold] says what kind of file it is given: {story.classes} classes, a probability for "
        f"each. Here it was asked about {story.asked} files of this machine, and judged on {story.held_out} others "
        f"from other folders; {story.runtime}, seed {story.seed}, {story.took:.0f} s."
    )
    console.print(Panel(text, title="[bold]hardening demo[/bold]", title_align="left"))
    console.print("The policy:")
    console.print(Syntax(story.policy.strip(), "toml", theme="ansi_dark", background_color="default", padding=(0, 2)))


def _answers(story: Story, console: Console) -> None:
    table = _table("file", BARE, *story.tiers)
    for example in story.examples:
        cells = ["\n".join(f"{name} {score:.3f}" for name, score in row) for row in example.answers.values()]
        table.add_row(Text(example.file, overflow="fold"), *cells)
        table.add_section()
    console.print(table)
    console.print("The three best classes. Asked again, every tier gives the same answer again.")


def _promise(promise: Guarantee) -> str:
    sigma = promise.parameters.get("sigma")
    if promise.relation in ("label", "output-metric") and sigma:
        apart = 0.5 * sigma
        right = 0.5 * (1 + math.erf(0.25 / math.sqrt(2)))
        agree = "that agree on the best class, " if promise.relation == "label" else ""
        return (
            f"Two models {agree}with scores {apart:g} apart: who sees one answer and guesses which gave it "
            f"is right in about {100 * right:.0f} % of cases (a coin: 50 %), while the key is secret."
        )
    if promise.relation == "capacity":
        return "An answer carries no more than its bits. Nothing else is promised."
    return "Nothing."


def _promises(story: Story, console: Console) -> None:
    table = _table("tier", "bits", "promise", "L1 cost", "best class", right=("bits", "L1 cost", "best class"))
    table.add_row(_name(BARE), f"{story.raw_bits:.0f}", "Nothing.", "0", "kept")
    for name, tier in story.tiers.items():
        kept = "kept" if tier.promise.keeps_top1 else _percent(tier.kept)
        table.add_row(_name(name), f"{tier.promise.bits:.1f}", _promise(tier.promise), f"{tier.l1:.2f}", kept)
        if name != list(story.tiers)[-1]:
            table.add_row()
    console.print(table)
    console.print(
        "bits: the most that one answer can carry. L1 cost: how far an honest user's scores are moved, on average, "
        "out of 2. None of this is differential privacy of the training data."
    )


def _costs(story: Story, console: Console) -> None:
    columns = ("model", "bare call", "hardened", "ratio", "95 % interval", "pairs")
    table = _table(*columns, right=columns[1:])
    for cost in story.overheads:
        low, high = cost.interval
        table.add_row(
            cost.what,
            f"{cost.bare_us:,.0f} µs",
            f"{cost.hardened_us:,.0f} µs",
            f"{cost.ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            str(cost.pairs),
        )
    console.print(table)
    console.print(
        "One question a call, bare and hardened (normal) in turn; ratio: median over pairs. The perceptron "
        "does next to nothing itself: the worst case."
    )


def _fidelities(table_of: Mapping[str, tuple[Extraction, ...]], console: Console) -> None:
    budgets = [f"{found.queries} questions" for found in next(iter(table_of.values()))]
    table = _table("answers from", *budgets, right=tuple(budgets))
    for tier, row in table_of.items():
        cells = []
        for found in row:
            low, high = found.fidelity.interval
            cells.append(f"{_percent(found.fidelity.value)}  [dim]{100 * low:.0f}-{100 * high:.0f}[/dim]")
        table.add_row(_name(tier), *cells)
    console.print(table)


def _copying(story: Story, console: Console) -> None:
    console.print(
        "A thief trains a student on answers. The table shows how often it agrees with the bare model on files it "
        "never asked about (95 % interval). He keeps the better of learning from scores and from labels alone."
    )
    console.print()
    _fidelities(story.copies, console)
    bare, label = story.copies[BARE], list(story.copies.values())[-1]
    by_tier = 100 * (bare[-1].fidelity.value - label[-1].fidelity.value)
    by_count = 100 * (bare[-1].fidelity.value - bare[0].fidelity.value)
    apart = bare[-1].fidelity.interval[0] > label[-1].fidelity.interval[1]
    verdict = "the intervals do not overlap" if apart else "the intervals overlap"
    console.print(
        f"[bold]What decides is the number of questions.[/bold] Labels only instead of bare scores takes "
        f"{by_tier:.1f} points off the copy ({verdict}); {bare[0].queries} questions instead of {bare[-1].queries} "
        f"take {by_count:.1f}. No tier that keeps the best class can do better than labels only: "
        "give each client a budget."
    )


def _solving(story: Story, console: Console) -> None:
    console.print(
        "Exact scores are another matter. The scores of a softmax regression (16 inputs, 10 classes, made here) "
        "are equations in its weights: 17 answers are enough to solve them."
    )
    console.print()
    _fidelities(story.solutions, console)
    bare, first = story.solutions[BARE][0], next(iter(story.tiers))
    hardened = story.solutions[first]
    console.print(
        f"Undefended, {bare.queries} questions give {_percent(bare.fidelity.value)}; in tier {first} the same "
        f"questions give {_percent(hardened[0].fidelity.value)} and {hardened[-1].queries} give "
        f"{_percent(hardened[-1].fidelity.value)}. This buys time, not safety."
    )


def _repeating(story: Story, console: Console) -> None:
    repeats = story.repeats
    columns = [f"mean of {n}" for n in repeats.times]
    columns[0] = "1 answer"
    table = _table("error of the scores", *columns, right=tuple(columns))
    table.add_row(Text("noise drawn anew", "red"), *(f"{e:.4f}" for e in repeats.fresh))
    table.add_row(Text("noise keyed by question", "green"), *(f"{e:.4f}" for e in repeats.keyed))
    console.print(table)
    console.print(
        f"Asking {repeats.times[-1]} times divides the error of fresh noise by "
        f"{repeats.fresh[0] / repeats.fresh[-1]:.1f} (theory: {math.sqrt(repeats.times[-1]):.0f}), that of keyed noise "
        f"by {repeats.keyed[0] / repeats.keyed[-1]:.1f}. Policies key noise by the question unless told otherwise."
    )


def _watched(table: Table, client: Watched, tiers: Sequence[str]) -> None:
    after = Text("never") if client.flagged is None else Text(f"{client.flagged} questions", "bold red")
    told = [str(client.answers.get(tier, "")) for tier in tiers]
    table.add_row(client.client, f"{client.suspicion:.2f}", after, *told, Text("refused" * client.refused, "bold red"))


def _watching(story: Story, console: Console) -> None:
    found, held = story.alarms, story.alarms.baseline.held_out
    console.print(
        f"{found.baseline.clients + held.clients} ordinary clients, each with files of a random half of the kinds that "
        f"there are, asked {found.questions} questions each, which were logged. Half of them made a baseline, the "
        "other half tested it, as [bold]hardening calibrate[/bold] does. Then this was added to the policy:"
    )
    console.print(Syntax(ADDED.strip(), "toml", theme="ansi_dark", background_color="default", padding=(0, 2)))
    low, high = held.share_outside()
    suspect, label, refused = (odds(chance(at, FALSE_ALARM)) for at in (1.0, 1.5, 2.0))
    console.print(
        f"An ordinary client inside the baseline ever gets suspect answers with a chance of at most {suspect}, labels "
        f"{label}, refusals {refused}, however much it asks. {held.outside} of {held.clients} held-out clients lie "
        f"outside of it, where none of this is promised: {_percent(low)} to {_percent(high)} of all, with 95 % "
        "confidence."
    )
    console.print()
    tiers = tuple(story.tiers)
    right = ("suspicion", "flagged after", *tiers)
    table = _table("who sends what", *right, "then", right=right)
    ordered = sorted(found.ordinary, key=lambda client: client.suspicion)
    for client in (ordered[0], ordered[len(ordered) // 2], ordered[-1]):
        _watched(table, client, tiers)
    table.add_section()
    for client in found.thieves:
        _watched(table, client, tiers)
    console.print(table)
    flagged = sum(client.flagged is not None for client in found.ordinary)
    console.print(
        "The highest suspicion of each, and how many of its questions each tier answered. Flagged among "
        f"{len(found.ordinary)} other ordinary clients (shown: lowest, middle and highest): {flagged}; 95 % interval "
        f"of the rate up to {100 * wilson(flagged, len(found.ordinary))[1]:.0f} %."
    )
    if found.thieves[-1].flagged is None:
        console.print(
            "Whoever sends real files only, as the thief who copied the model did, looks like everybody else. "
            "No observer could tell him from one; a budget stops him."
        )


_PARTS = {
    "": _opening,
    "What an answer says": _answers,
    "What a tier promises, and what it costs an honest user": _promises,
    "What it costs in time": _costs,
    "Copying the model": _copying,
    "Solving the model": _solving,
    "Asking the same question again": _repeating,
    "Alarms: who asks what nobody would ask": _watching,
}
