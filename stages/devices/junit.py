"""The outcome of a bench as a JUnit report, which CI systems show: one test case per device and check. Imports the standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from stages.errors import InvalidMeasurement, NpasError, TooSlow

CHECKS = {"measurement": NpasError, "trust": InvalidMeasurement, "speed": TooSlow}  # a check fails with its kind of error


def report(records: Sequence[Mapping[str, Any]], failures: Sequence[NpasError | None], specs: Sequence[str]) -> str:
    """The XML text. ``records[k]`` is that of ``specs[k]``; a device without one (its error stands in ``failures``) was not measured, and those after it were skipped."""
    suites = ElementTree.Element("testsuites", name="npas bench")
    for k, spec in enumerate(specs):
        record = records[k] if k < len(records) else None
        error = failures[k] if k < len(failures) else None
        cases = [_case(spec, check, kind, record, error) for check, kind in CHECKS.items()]
        seconds = sum(record["samples_ms"]) / 1e3 if record else 0.0
        suite = ElementTree.SubElement(suites, "testsuite", name=spec, tests=str(len(cases)), time=f"{seconds:.3f}")
        for total, word in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(total, str(sum(case.find(word) is not None for case in cases)))
        if record:
            properties = ElementTree.SubElement(suite, "properties")
            for name, value in _properties(record).items():
                ElementTree.SubElement(properties, "property", name=name, value=str(value))
        suite.extend(cases)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _case(spec: str, check: str, kind: type[NpasError], record: Mapping[str, Any] | None, error: NpasError | None) -> ElementTree.Element:
    case = ElementTree.Element("testcase", classname=f"npas.bench.{spec}", name=check)
    if record is None and check == "measurement" and error:
        ElementTree.SubElement(case, "error", type=type(error).__name__, message=error.message).text = error.hint
    elif record is None:
        ElementTree.SubElement(case, "skipped", message="not measured")
    elif error and check != "measurement" and isinstance(error, kind):
        ElementTree.SubElement(case, "failure", type=type(error).__name__, message=error.message).text = error.hint
    elif check == "speed" and isinstance(error, InvalidMeasurement):
        ElementTree.SubElement(case, "skipped", message="the measurement is not to be trusted")
    return case


def _properties(record: Mapping[str, Any]) -> dict[str, Any]:
    device = record["device"]
    return {
        "device": device["soc"], "emulated": device["emulated"], "median_ms": record["stats"]["median"], "ci95_ms": record["stats"]["ci95"],
        "dense_median_ms": record["dense"]["stats"]["median"], "speedup": record["speedup"]["ratio"], "runs": len(record["samples_ms"]),
    }  # fmt: skip
