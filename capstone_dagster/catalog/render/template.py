"""A CloudFormation template as YAML: intrinsic functions, and the layout of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .deployment import DEPLOYMENT, OPEN_NAME, open_names


@dataclass(frozen=True)
class Function:
    """An intrinsic function in its short form, such as `!Ref Cluster`."""

    name: str
    value: Any


def with_functions(value: Any) -> Any:
    """A value in which each text with open names is replaced by the function that fills them in."""
    if isinstance(value, str):
        names = open_names(value)
        if not names:
            return value
        return _value_of(names[0]) if value == f"${{{names[0]}}}" else sub(value)
    if isinstance(value, Mapping):
        return {key: with_functions(each) for key, each in value.items()}
    return [with_functions(each) for each in value] if isinstance(value, list) else value


def sub(text: str, variables: Mapping[str, Any] | None = None) -> Function:
    """`!Sub` of a text, with a variable for each open name that CloudFormation cannot resolve itself."""
    found: dict[str, Any] = dict(variables or {})
    for name in OPEN_NAME.findall(text):
        if name in found:
            continue
        known = DEPLOYMENT[name]
        if direct := known.pseudo or known.parameter:
            text = text.replace(f"${{{name}}}", f"${{{direct}}}")
        else:
            found[name] = _value_of(name)
    return Function("Sub", [text, found] if found else text)


def dump(body: Mapping[str, Any]) -> str:
    """The sections of a template, each followed by an empty line."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 110}
    return "\n".join(
        yaml.dump({key: each}, Dumper=_Dumper, default_flow_style=None, **options)
        for key, each in body.items()
    )


def _value_of(name: str) -> Function:
    known = DEPLOYMENT[name]
    if known.export:
        return Function("ImportValue", known.export)
    return Function("Ref", known.parameter or known.pseudo)


class _Dumper(yaml.SafeDumper):
    """Block style outside, flow style for plain values alone, and texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # CloudFormation rejects aliases

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def choose_scalar_style(self) -> str:
        # PyYAML would quote every scalar with a tag.
        event = self.event
        if isinstance(event, yaml.ScalarEvent) and str(event.tag).startswith("!") and not event.style:
            self.analysis = self.analysis or self.analyze_scalar(event.value)
            if self.analysis.allow_flow_plain:
                return ""
        return str(super().choose_scalar_style())


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_function(dumper: yaml.SafeDumper, function: Function) -> yaml.Node:
    tag, value = f"!{function.name}", function.value
    if isinstance(value, str):
        return dumper.represent_scalar(tag, value, style="|" if "\n" in value else None)
    return dumper.represent_sequence(tag, value)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Function, _represent_function)
