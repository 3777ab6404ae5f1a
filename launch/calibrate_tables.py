"""How a calibration looks: tables of one trait, with the readers' own agreement beside the judge's."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sftdiff.words import counted

Report = Mapping[str, Any]
GROUP_TITLES = {"origin": "By origin", "intended": "By what a reply was written to be", "model": "By model"}


def print_calibration(console: Console, trait: str, report: Report, source: str) -> None:
    """Print the tables of one trait; `source` says where the labels are from."""
    judge, rubric = (str(report["judge"].get(key, "")) for key in ("judge", "rubric"))
    console.print(escape(f"\n{trait}: {judge} ({rubric}) against hand labels ({source})"), style="bold")
    console.print(escape(_counts(report)))
    console.print(_main(report))
    if report["kind"] == "share":
        console.print(_matrix("Labels", report["labels"]["readers"], report["labels"]["judge"], report["labels"]["counts"]))
    else:
        console.print(_ranges(report["bias_by_range"]))
    for name, groups in report["groups"].items():
        if groups:
            console.print(_groups(GROUP_TITLES.get(name, name), groups))
    _print_planted(console, report["planted"])


def _counts(report: Report) -> str:
    parts = [f"{counted(report['judged'], 'reply')} to {counted(report['scenarios'], 'scenario')}"]
    disputed = report["disputed"]
    if report["unlabelled"]:
        parts.append(f"{report['unlabelled']} without a label")
    if report["no_verdict"]:
        parts.append(f"{report['no_verdict']} on which the judge has no verdict")
    if disputed["rows"]:
        said = f"the judge counts {disputed['judge_positive']} of them"
        parts.append(f"{disputed['rows']} on which the readers differ are left out ({said})")
    return "; ".join(parts)


def _main(report: Report) -> Table:
    table = Table(title="Agreement", title_justify="left")
    for heading in ("", "value", "95 %"):
        table.add_column(heading)
    weights = "quadratic weights" if report["kind"] == "rating" else "on whether it counts"
    table.add_row(f"kappa of judge and readers, {weights}", *_value(report["kappa"]))
    for pair in report["readers"]:
        names = f"{' and '.join(pair['labellers'])} ({counted(pair['rows'], 'reply')})"
        table.add_row(escape(f"kappa of {names}"), *_value(pair["kappa"]))
        if "within_1" in pair:
            table.add_row(escape(f"within 1 point: {names}"), *_share(pair["within_1"]))
    if report["kind"] == "rating":
        table.add_row("within 1 point: judge and readers", *_share(report["within_1"]))
        table.add_row("rank correlation", _number(report["spearman"]), "")
        _add_binary(table, report["strong"], f" of {report['strong']['from']:g} or more")
    else:
        _add_binary(table, report, "")
    bias, unit = report["bias"], " points" if report["kind"] == "rating" else ""
    means = f"{_number(bias['judge'])} - {_number(bias['readers'])}"
    table.add_row(f"bias: mean of the judge minus that of the readers ({means}){unit}", *_value(bias, sign=True))
    return table


def _add_binary(table: Table, found: Report, what: str) -> None:
    (no, false), (missed, yes) = found["confusion"]
    table.add_row(f"readers yes: judge yes / no{what}", f"{yes} / {missed}", "")
    table.add_row(f"readers no: judge yes / no{what}", f"{false} / {no}", "")
    table.add_row(f"sensitivity{what}", *_share(found["sensitivity"]))
    table.add_row(f"specificity{what}", *_share(found["specificity"]))


def _matrix(title: str, rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    table = Table(title=f"{title}: readers (rows) and judge (columns)", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(escape(column), justify="right")
    for row, numbers in zip(rows, counts, strict=True):
        table.add_row(escape(row), *(str(number) if number else "." for number in numbers))
    return table


def _ranges(ranges: Sequence[Report]) -> Table:
    table = Table(title="Bias by the readers' score", title_justify="left")
    for heading in ("readers' score", "replies", "readers", "judge", "bias", "95 %"):
        table.add_column(heading)
    for row in ranges:
        means = (_number(row["readers"]), _number(row["judge"]))
        table.add_row(row["range"], str(row["rows"]), *means, *_value(row, sign=True))
    return table


def _groups(title: str, groups: Sequence[Report]) -> Table:
    shown = [key for key in ("agreement", "within_1", "sensitivity", "specificity") if key in groups[0]]
    table = Table(title=title, title_justify="left")
    for heading in ("", "replies", "readers", "judge", "bias", *(["kappa"] if "kappa" in groups[0] else []), *shown):
        table.add_column(heading.replace("_", " "))
    for row in groups:
        bias = row["bias"]
        numbers = [_number(bias["readers"]), _number(bias["judge"]), _value(bias, sign=True)[0]]
        numbers += [_number(row["kappa"]["value"])] if "kappa" in row else []
        table.add_row(escape(row["name"]), str(row["rows"]), *numbers, *(_share(row[key])[0] for key in shown))
    return table


def _print_planted(console: Console, planted: Report | None) -> None:
    if planted is None:
        return
    for side, found in planted.items():
        order = {True: "as planted", False: "NOT as planted", None: "cannot be checked: a kind is missing"}[found["ordered"]]
        means = ", ".join(f"{name} {mean:.2f}" for name, mean in sorted(found["means"].items(), key=lambda item: -item[1]))
        pairs = ", ".join(f"{pair} {share:.0%}" for pair, share in found["pairs"].items())
        console.print(escape(f"Order strong > mild > all others, {side}: {order} (means {means}; pairs in this order {pairs})"))


def _value(found: Report, sign: bool = False) -> tuple[str, str]:
    form = "+.2f" if sign else ".2f"
    if found["low"] is None:
        return _number(found["value"], form), "-"
    return _number(found["value"], form), f"[{found['low']:{form}}, {found['high']:{form}}]"


def _share(found: Report) -> tuple[str, str]:
    if found["value"] is None:
        return "-", "-"
    return f"{found['value']:.0%} ({found['hits']} of {found['of']})", f"[{found['low']:.0%}, {found['high']:.0%}]"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"
