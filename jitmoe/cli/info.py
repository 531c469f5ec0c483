# SPDX-License-Identifier: MIT
"""jitmoe-info: what is here, whether it works, and what to do about what does not."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

from jitmoe.cli import advice, terminal
from jitmoe.cli.advice import Finding, Verdict
from jitmoe.cli.cache import items_of, layers_text
from jitmoe.cli.facts import Facts, collect, read_knobs
from jitmoe.cli.layers import Layer, find_layers
from jitmoe.cli.terminal import EXIT_FAILED, EXIT_OK, text_table
from jitmoe.source import header_digest

_MARKS = {"problem": "!!", "warning": "! ", "note": "- "}


def _failed_checks(layers: Sequence[Layer]) -> tuple[str, ...]:
    failed = []
    for layer in layers:
        if layer.is_readable:
            for path, verdict in layer.store.verdicts():
                if verdict.get("status") == "failed" and not path.stem.endswith("-compile"):
                    kernels = ", ".join(str(kernel) for kernel in verdict.get("kernels", ()))
                    failed.append(f"{kernels} on {verdict.get('device')}: {verdict.get('evidence')}")
    return tuple(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns its exit code."""
    return terminal.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="jitmoe-info",
        description="Shows devices, compilers, cache and settings, tries them out, and says what to do.",
        epilog="exit codes: 0 fused_moe can run its kernels somewhere here, 1 it cannot, or a setting cannot be read",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    settings, _, _ = read_knobs(os.environ)
    layers = find_layers(settings)
    writable = next((layer.path for layer in layers if layer.role == "writable"), None)
    facts = collect(writable, _failed_checks(layers))
    findings = advice.find_all(facts, layers)
    installed = header_digest()
    cached_devices = [item.device for item in items_of(layers) if item.stored.info.get("headers") == installed]
    verdict = advice.verdict(facts, cached_devices)
    if options.json:
        terminal.print_json(
            {
                **facts.record(),
                "cache": [{"path": str(la.path), "role": la.role, "state": la.state} for la in layers],
                "findings": [dataclasses.asdict(finding) for finding in findings],
                "runs_on": [*verdict.fresh, *verdict.cached],
            }
        )
    else:
        print(report(facts, layers, findings, verdict))
    return EXIT_FAILED if verdict.why_not else EXIT_OK


def report(facts: Facts, layers: Sequence[Layer], findings: Sequence[Finding], verdict: Verdict) -> str:
    """Returns the whole report as text."""
    parts = [
        f"jitmoe {facts.jitmoe}, Python {facts.python}, {facts.system}",
        _section("Devices", _devices(facts)),
        _section("Compilers", _compilers(facts)),
        _section(
            "Packages", text_table([[name, version or "not installed"] for name, version in facts.packages.items()])
        ),
        _section("Runtime", _runtime(facts)),
        _section("Cache", layers_text(layers)),
        _section("Settings", text_table([[k["variable"], k["value"], k["origin"]] for k in facts.knob_rows])),
    ]
    others = [[name, value] for name, value in facts.environment.items() if name not in ("HOME", "LD_LIBRARY_PATH")]
    if others:
        parts.append(_section("Other variables that matter", text_table(others)))
    if findings:
        lines = []
        for finding in findings:
            first, *rest = finding.what.splitlines()
            lines.append(f"  {_MARKS[finding.level]} {first}")
            lines += [f"       {line}" for line in rest]
            lines.append(f"     {finding.advice}")
        parts.append(_section("Findings", "\n".join(lines)))
    parts.append(verdict.text)
    return "\n\n".join(parts)


def _section(title: str, body: str) -> str:
    return f"{title}\n{body}"


def _devices(facts: Facts) -> str:
    targets = facts.sycl.get("targets", ())
    rows = []
    for target in targets:
        words = ", ".join(part for part in (target["arch"], target["isa"] or "") if part)
        state = {True: "runs the probe kernel", False: "FAILS the probe kernel", None: "not tried"}[target["runs"]]
        rows.append(
            [
                target["kind"],
                target["name"],
                words,
                f"{target['compute_units']} units",
                f"driver {target['driver']}",
                state,
            ]
        )
    used = {target["name"] for target in targets}
    for device in facts.sycl.get("devices", ()):
        if device["name"] not in used:
            rows.append([device["type"], device["name"], "", "", f"driver {device['driver']}", "not used by jitmoe"])
    for device in facts.torch.get("devices", ()):
        rows.append(["xpu", device["name"], "", "", f"driver {device['driver']}", "seen by torch"])
    return text_table(rows) if rows else "  none"


def _compilers(facts: Facts) -> str:
    rows = []
    for compiler in facts.compilers:
        identity = compiler["identity"].partition(" sha256")[0]
        result = f"probe kernel in {compiler['seconds']:.2f} s" if compiler["works"] else "FAILS the probe kernel"
        rows.append([identity, result, "" if compiler["used"] else "not used (JITMOE_COMPILER)"])
    known = " ".join(compiler["identity"] for compiler in facts.compilers)
    for place in facts.searched:
        if not any(word in known for word in place.replace(":", " ").split()[-1:]):
            rows.append([place, "", ""])
    return text_table(rows) if rows else "  none"


def _runtime(facts: Facts) -> str:
    torch = facts.torch
    xpu = torch.get("error") or ("available" if torch.get("xpu_available") else "not available")
    rows = [
        ["libsycl that dpctl needs", facts.needed_libsycl or "-"],
        ["libsycl that torch loads", ", ".join(torch.get("libsycl", ())) or "none"],
        ["torch.xpu", str(xpu) + (f" (built for {torch['xpu_version']})" if torch.get("xpu_version") else "")],
        ["CPU runtime", str(facts.sycl.get("cpu_runtime") or "-")],
    ]
    return text_table(rows)


if __name__ == "__main__":
    sys.exit(main())
