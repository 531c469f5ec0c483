# SPDX-License-Identifier: MIT
"""jitmoe-cache: what is in the kernel cache, whether it is whole, and how to clean, carry and bound it."""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jitmoe
from jitmoe import knobs
from jitmoe.cache import Entry
from jitmoe.cache.bundle import read_bundle, write_bundle
from jitmoe.cache.files import FileStore, StoredEntry, UntrustedFolderError
from jitmoe.cache.key import SCHEMA_VERSION
from jitmoe.cli import terminal
from jitmoe.cli.layers import Layer, find_layers
from jitmoe.cli.stale import Present, image_of, why_entry_is_stale, why_verdict_is_stale
from jitmoe.cli.terminal import EXIT_FAILED, EXIT_OK, EXIT_USAGE, count, format_age, format_size, text_table
from jitmoe.errors import CacheError
from jitmoe.source import header_digest

_FULL_DEVICE = re.compile(r"\((?:cpu|gpu|xe-emulated), ([^,)]+)")
SHORT_DIGEST = 12  # characters shown, and enough to name an entry

EXAMPLES = """\
examples:
  jitmoe-cache list
  jitmoe-cache info 3f0c                     everything about one entry (any beginning of its digest)
  jitmoe-cache clear --stale                 after an upgrade of a driver, a compiler or jitmoe
  jitmoe-cache clear 'jitmoe_xe_*' --dry-run
  jitmoe-cache prune --max-size 500M
  jitmoe-cache export kernels.tar            and on the other machine: jitmoe-cache import kernels.tar

Entries are compiled code. Import bundles only from people whose programs you would run.
"""


class UsageError(Exception):
    """A command line that asks for something impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One entry of a listing."""

    layer: Layer
    stored: StoredEntry

    @property
    def digest(self) -> str:
        return self.stored.key.digest

    @property
    def device(self) -> str:
        """The architecture; machine code names its device in full, with the architecture in parentheses."""
        device = str(self.stored.info.get("device", ""))
        found = _FULL_DEVICE.search(device)
        return found.group(1) if found else device

    @property
    def compiler(self) -> str:
        if image_of(self.stored):
            return f"driver {self.stored.info.get('driver', '')}"
        return " ".join(str(self.stored.info.get("compiler", "")).split()[:2])

    @property
    def spec(self) -> str:
        return str(self.stored.info.get("spec", "")).partition("(")[2].removesuffix(")")

    def record(self) -> dict[str, Any]:
        """Returns the facts for --json."""
        return {
            "digest": self.digest,
            "kernel": self.stored.key.name,
            "device": self.device,
            "compiler": self.stored.info.get("compiler"),
            "spec": self.stored.info.get("spec"),
            "bytes": self.stored.num_bytes,
            "created": self.stored.info.get("created"),
            "last_used": self.stored.last_used,
            "path": str(self.stored.path),
            "layer": str(self.layer.path),
        }


def items_of(layers: Sequence[Layer]) -> list[Item]:
    """Returns every readable entry of every layer."""
    return [
        Item(layer=layer, stored=stored) for layer in layers if layer.is_readable for stored in layer.store.iterate()
    ]


def _say_what_is_skipped(layers: Sequence[Layer]) -> None:
    """Warns of folders that neither this tool nor the library reads."""
    for layer in layers:
        if layer.role == "not usable":
            terminal.warn(f"cache folder {layer.path} is not used: {layer.state}")


def _writable(layers: Sequence[Layer]) -> FileStore:
    """Returns the writable layer with its folders made; raises ``CacheError`` if there is none."""
    for layer in layers:
        if layer.role == "writable":
            try:
                layer.store.prepare()
            except (OSError, UntrustedFolderError) as error:
                raise CacheError(path=layer.path, reason=f"cannot be written ({error})") from error
            return layer.store
    where = layers[-1]
    raise CacheError(path=where.path, reason=f"no cache folder can be written ({where.state}); set JITMOE_CACHE_DIR")


def _matches(item: Item, patterns: Sequence[str]) -> bool:
    """Whether an entry is meant: kernel name pattern, part of the name, or beginning of the digest."""
    for pattern in patterns:
        name = item.stored.key.name
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"jitmoe_{pattern}"):
            return True
        if len(pattern) >= 4 and item.digest.startswith(pattern):
            return True
    return False


def _total(items: Sequence[Item]) -> int:
    return sum(item.stored.num_bytes for item in items)


# list, info, path


def _list(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    _say_what_is_skipped(layers)
    items = [item for item in items_of(layers) if not options.pattern or _matches(item, options.pattern)]
    items.sort(key=lambda item: (item.stored.key.name, item.device, item.spec))
    if options.json:
        terminal.print_json([item.record() for item in items])
        return EXIT_OK
    if not items:
        print("no entries" + (" match" if options.pattern else ""))
    now = terminal.now()
    several = sum(1 for layer in layers if layer.is_readable) > 1
    rows = [
        [
            item.digest[:SHORT_DIGEST],
            item.stored.key.name.removeprefix("jitmoe_"),
            item.device,
            item.compiler,
            format_size(item.stored.num_bytes),
            format_age(now - item.stored.last_used),
            *([item.layer.role] if several else []),
            item.spec,
        ]
        for item in items
    ]
    header = ["ENTRY", "KERNEL", "DEVICE", "COMPILER", "SIZE", "USED", *(["LAYER"] if several else []), "SPEC"]
    if rows:
        print(terminal.shorten(text_table(rows, header=header, right=(4,), indent=0)))
        print(f"\n{count(len(items), 'entry', 'entries')}, {format_size(_total(items))}")
    return EXIT_OK


def _layer_record(layer: Layer) -> dict[str, Any]:
    items = items_of([layer])
    root = layer.path
    return {
        "path": str(root),
        "role": layer.role,
        "state": layer.state,
        "entries": len(items),
        "bytes": _total(items),
        "self_checks": _num_files(root / "trust"),
        "set_aside_damaged": _num_files(root / "damaged"),
        "failed_compilations": _num_files(root / "failed"),
        "unfinished": _num_files(root / "tmp"),
    }


def _num_files(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return 0


def layers_text(layers: Sequence[Layer]) -> str:
    """Returns one line per layer, for people; also used by jitmoe-info."""
    rows = []
    for layer in layers:
        record = _layer_record(layer)
        facts = [count(record["entries"], "entry", "entries"), format_size(record["bytes"])]
        for name in ("self_checks", "set_aside_damaged", "failed_compilations", "unfinished"):
            if record[name]:
                facts.append(f"{record[name]} {name.replace('_', ' ')}")
        rows.append([str(layer.path), layer.role, layer.state or ", ".join(facts)])
    return text_table(rows)


def _info(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    if options.entry is None:
        if options.json:
            terminal.print_json({"schema": SCHEMA_VERSION, "layers": [_layer_record(layer) for layer in layers]})
        else:
            print("cache folders, in the order of look-up")
            print(layers_text(layers))
        return EXIT_OK
    _say_what_is_skipped(layers)
    found = {item.digest: item for item in reversed(items_of(layers)) if _matches(item, [options.entry])}
    if not found:
        raise UsageError(
            f"no entry's kernel is called {options.entry!r} and no digest (4 characters or more) begins so"
        )
    records = [_entry_record(item) for item in found.values()]
    if options.json:
        terminal.print_json(records)
        return EXIT_OK
    for position, record in enumerate(records):
        print("\n" * bool(position) + _entry_text(record))
    return EXIT_OK


def _entry_record(item: Item) -> dict[str, Any]:
    record = item.record()
    verdicts = [
        {"record": path.stem.partition("-")[2], **verdict}
        for path, verdict in item.layer.store.verdicts()
        if path.name.startswith(item.digest)
    ]
    files = {path.name: path.stat().st_size for path in sorted(item.stored.path.iterdir())}
    return {
        **record,
        "request_digest": item.stored.key.request_digest,
        "build": dict(item.stored.key.build),
        "info": item.stored.info,
        "files": files,
        "damage": item.layer.store.verify(item.stored.path) or None,
        "self_checks": verdicts,
    }


def _entry_text(record: dict[str, Any]) -> str:
    now = terminal.now()
    info, build = record["info"], record["build"]
    seconds = f", in {float(info['seconds']):.2f} s" if info.get("seconds") is not None else ""
    rows = [
        ("entry", record["digest"]),
        ("kernel", record["kernel"]),
        ("spec", str(record["spec"])),
        ("device", record["device"] + (f", driver {build['driver']}" if build.get("driver") else "")),
        ("compiler", str(record["compiler"] or "the device's driver")),
        ("options", str(build.get("argv", "")).replace("\n", " ")),
        ("sources", f"jitmoe {info.get('jitmoe')}, headers {str(info.get('headers'))[:SHORT_DIGEST]}"),
        ("made", format_age(now - float(info.get("created", now))) + seconds),
        ("last used", format_age(now - record["last_used"])),
        ("files", ", ".join(f"{name} {format_size(size)}" for name, size in record["files"].items())),
        ("folder", record["path"]),
        ("state", f"DAMAGED: {record['damage']}" if record["damage"] else "whole, every digest verified"),
    ]
    for verdict in record["self_checks"]:
        words = str(verdict.get("status"))
        if verdict.get("error") is not None:
            words += f", error {float(verdict['error']):.1e}"
        if verdict.get("evidence") or verdict.get("reason"):
            words += f", {verdict.get('evidence') or verdict.get('reason')}"
        rows.append(("checked", f"{words}, on {verdict.get('device', 'no device')}"))
    if not record["self_checks"]:
        rows.append(("checked", "on no device yet"))
    return text_table([list(row) for row in rows], indent=0)


def _path(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    if options.json:
        terminal.print_json([{"path": str(layer.path), "role": layer.role} for layer in layers])
        return EXIT_OK
    writable = [layer for layer in layers if layer.role == "writable"]
    shown = layers if options.all else writable
    for layer in shown:
        print(layer.path)
    if not shown:
        terminal.fail(f"no cache folder can be written ({layers[-1].path}: {layers[-1].state})")
    return EXIT_OK if shown else EXIT_FAILED


# verify


def _verify(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    problems = []
    checked = removed = removable = 0
    for layer in layers:
        if layer.role == "not usable" and layer.is_folder:
            problems.append({"path": str(layer.path), "problem": layer.state})
        if not layer.is_readable:
            continue
        for folder in layer.store.folders():
            checked += 1
            problem = layer.store.verify(folder)
            if problem:
                problems.append({"path": str(folder), "problem": problem})
                removable += layer.role == "writable"
                if options.repair and layer.role == "writable":
                    _writable(layers).remove(folder)
                    removed += 1
        readable = {path for path, _ in layer.store.verdicts()}
        for path in sorted((layer.path / "trust").glob("*.json")):
            if path not in readable:
                problems.append({"path": str(path), "problem": "the self-check record is damaged or not trusted"})
                removable += layer.role == "writable"
                if options.repair and layer.role == "writable":
                    layer.store.remove_verdict(path)
                    removed += 1
    if options.json:
        terminal.print_json({"checked": checked, "problems": problems, "removed": removed})
    else:
        for found in problems:
            print(f"{found['path']}\n  {found['problem']}")
        verdict = count(len(problems), "problem") if problems else "all whole"
        print(f"{count(checked, 'entry', 'entries')} verified, {verdict}" + (f", {removed} removed" if removed else ""))
        if removable > removed:
            print("jitmoe never uses such entries and builds them again; verify --repair removes them")
        if len(problems) > removable:
            print(
                "folders that are not used or only read stay as they are: correct them, or repair them as their owner"
            )
    return EXIT_FAILED if len(problems) > removed else EXIT_OK


# clear, prune


def what_is_present() -> Present:
    """Looks at this machine: kernel sources, compilers, runtime, devices."""
    from jitmoe.cli.devices import present_targets
    from jitmoe.compilers.find import find_compilers
    from jitmoe.compilers.sycl_tla import find_sycl_tla
    from jitmoe.runtime import sycl

    runtime = sycl.runtime_soname_or_none()
    compilers, _ = find_compilers("auto", runtime)
    package, _ = find_sycl_tla()
    targets, _ = present_targets()
    return Present(
        headers=header_digest(),
        compilers=tuple(compiler.identity for compiler in compilers),
        runtime=runtime,
        devices=tuple(target.device for target in targets),
        packages=(package.identity,) if package is not None else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One thing to remove, with the reason shown to the person."""

    path: Path
    what: str
    why: str
    num_bytes: int
    remove: Callable[[], None]


def _removals(options: argparse.Namespace, store: FileStore) -> list[Removal]:
    everything = options.all
    present = what_is_present() if options.stale else None
    removals: list[Removal] = []
    staying = set()
    going = set()
    items = items_of([Layer(store=store, role="writable", state="")])
    for item in sorted(items, key=lambda item: bool(image_of(item.stored))):  # images before code made from them
        why = ""
        if present is not None:
            why = why_entry_is_stale(item.stored, present)
        elif everything:
            why = "asked for"
        elif _matches(item, options.pattern):
            why = "matches"
        image = image_of(item.stored)
        if not why and image and image not in staying and (present is not None or image in going):
            why = "the image it was made from goes" if image in going else "the image it was made from is gone"
        if not why:
            staying.add(item.digest)
            continue
        going.add(item.digest)
        removals.append(_entry_removal(store, item.stored.path, item.stored.key.name, why, item.stored.num_bytes))
    if everything:
        known = {removal.path for removal in removals}
        for folder in store.folders():
            if folder not in known:
                removals.append(_entry_removal(store, folder, "unreadable entry", "asked for", _folder_bytes(folder)))
    if present is not None or everything:
        for folder in sorted(store.root.glob("v*")):
            if folder.name != f"v{SCHEMA_VERSION}" and folder.name[1:].isdigit():
                removals.append(
                    Removal(
                        path=folder,
                        what=f"entries of cache schema {folder.name[1:]}",
                        why="asked for" if everything else f"this jitmoe uses schema {SCHEMA_VERSION}",
                        num_bytes=_folder_bytes(folder),
                        remove=lambda folder=folder: store.remove(folder),  # type: ignore[misc]
                    )
                )
    for path, verdict in store.verdicts():
        digest = path.stem.partition("-")[0]
        if everything:
            why = "asked for"
        elif present is not None:
            why = why_verdict_is_stale(path.stem, verdict, staying, present)
        else:
            why = "its kernel goes" if digest in going else ""
        if why:
            removals.append(
                Removal(
                    path=path,
                    what="self-check record",
                    why=why,
                    num_bytes=path.stat().st_size,
                    remove=lambda path=path: store.remove_verdict(path),  # type: ignore[misc]
                )
            )
    if everything:
        for name in ("damaged", "failed", "tmp"):
            for path in sorted((store.root / name).glob("*")):
                removals.append(_leftover_removal(path, name))
    return removals


def _entry_removal(store: FileStore, folder: Path, what: str, why: str, num_bytes: int) -> Removal:
    return Removal(path=folder, what=what, why=why, num_bytes=num_bytes, remove=lambda: store.remove(folder))


def _leftover_removal(path: Path, name: str) -> Removal:
    import shutil

    def remove() -> None:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    return Removal(path=path, what=f"leftover in {name}", why="asked for", num_bytes=_folder_bytes(path), remove=remove)


def _folder_bytes(folder: Path) -> int:
    files = [folder] if folder.is_file() else folder.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _clear(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    if sum((options.all, options.stale, bool(options.pattern))) != 1:
        raise UsageError("clear what? exactly one of --all, --stale, or kernel names (patterns such as 'jitmoe_cpu_*')")
    _say_what_is_skipped(layers)
    store = _writable(layers)
    removals = _removals(options, store)
    total = sum(removal.num_bytes for removal in removals)
    entries = sum(1 for removal in removals if removal.what not in ("self-check record",))
    summary = (
        f"{count(entries, 'entry', 'entries')} and {count(len(removals) - entries, 'record')}, {format_size(total)}"
    )
    if not options.json:
        for removal in removals if not options.all else ():
            name = removal.path.name[:SHORT_DIGEST]
            print(f"  {name:<{SHORT_DIGEST}}  {removal.what}: {removal.why}")
    records = [{"path": str(r.path), "what": r.what, "why": r.why, "bytes": r.num_bytes} for r in removals]
    if options.dry_run or not removals:
        if options.json:
            terminal.print_json({"removed": [], "would_remove": records, "folder": str(store.root)})
        else:
            print(f"would remove {summary} from {store.root}" if removals else f"nothing to remove in {store.root}")
        return EXIT_OK
    if not options.yes:
        if not terminal.is_interactive() or options.json:
            raise UsageError(f"this removes {summary} from {store.root}; say --yes where nobody can be asked")
        if not terminal.confirm(f"Remove {summary} from {store.root}?"):
            print("nothing removed")
            return EXIT_FAILED
    failures = []
    for removal in removals:
        try:
            removal.remove()
        except FileNotFoundError:
            continue  # another process was faster
        except OSError as error:
            failures.append(f"{removal.path}: {error.strerror or error}")
    if options.json:
        terminal.print_json({"removed": records, "failed": failures, "folder": str(store.root)})
    else:
        for failure in failures:
            terminal.fail(failure)
        print(f"removed {summary} from {store.root}")
    return EXIT_FAILED if failures else EXIT_OK


def _prune(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    _say_what_is_skipped(layers)
    store = _writable(layers)
    swept = 0 if options.dry_run else store.sweep()
    removed = store.prune(max_bytes=options.max_size, dry_run=options.dry_run)
    gone = {stored.path for stored in removed}
    left = sum(stored.num_bytes for stored in store.iterate() if stored.path not in gone)
    freed = sum(stored.num_bytes for stored in removed)
    if options.json:
        terminal.print_json(
            {
                "would_remove" if options.dry_run else "removed": [str(stored.path) for stored in removed],
                "bytes": freed,
                "bytes_left": left,
                "leftovers_removed": swept,
            }
        )
        return EXIT_OK
    for stored in removed:
        age = format_age(terminal.now() - stored.last_used)
        print(f"  {stored.key.digest[:SHORT_DIGEST]}  {stored.key.name}, {format_size(stored.num_bytes)}, used {age}")
    word = "would remove" if options.dry_run else "removed"
    print(f"{word} {count(len(removed), 'entry', 'entries')}, {format_size(freed)}; {format_size(left)} stay")
    return EXIT_OK


# export, import


def _export(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    _say_what_is_skipped(layers)
    chosen: dict[str, Entry] = {}
    damaged = 0
    for item in items_of(layers):
        wanted = (not options.pattern or _matches(item, options.pattern)) and (
            not options.device or item.device in options.device
        )
        if not wanted or item.digest in chosen:
            continue
        entry = item.layer.store.get(item.stored.key)
        if entry is None:
            damaged += 1
        else:
            chosen[item.digest] = entry
    if not chosen:
        raise UsageError("nothing to export: no whole entry matches")
    num_bytes = write_bundle(options.file, list(chosen.values()), version=jitmoe.__version__)
    if options.json:
        terminal.print_json(
            {"file": str(options.file), "entries": sorted(chosen), "bytes": num_bytes, "left_out": damaged}
        )
    else:
        left_out = f"; {count(damaged, 'damaged entry', 'damaged entries')} left out" if damaged else ""
        print(f"{count(len(chosen), 'entry', 'entries')}, {format_size(num_bytes)} in {options.file}{left_out}")
    return EXIT_FAILED if damaged else EXIT_OK


def _import(options: argparse.Namespace, layers: tuple[Layer, ...]) -> int:
    entries = read_bundle(options.file)
    store = _writable(layers)
    added = present = 0
    for entry in entries:
        folder = store.entry_path(entry.key)
        if folder.is_dir():
            if not store.verify(folder):
                present += 1
                continue
            store.remove(folder)  # damaged here, whole in the bundle
        try:
            store.put(entry)
        except OSError as error:
            raise CacheError(
                path=store.root, reason=f"cannot store {entry.key.name} ({error.strerror or error})"
            ) from error
        added += 1
    if options.json:
        terminal.print_json({"file": str(options.file), "added": added, "present": present, "folder": str(store.root)})
        return EXIT_OK
    print(f"{count(added, 'entry', 'entries')} added to {store.root}, {present} were there")
    foreign = [entry for entry in entries if dict(entry.key.request).get("headers") not in (None, header_digest())]
    if foreign:
        print(
            f"note: {len(foreign)} of them come from other kernel sources than this jitmoe has, which will not use them"
        )
    return EXIT_OK


# command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jitmoe-cache",
        description="Shows, verifies, cleans and carries the cache of compiled kernels.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace, tuple[Layer, ...]], int], help: str) -> Any:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(function=function)
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    patterns = "kernel names or patterns ('jitmoe_cpu_*'), or beginnings of digests"
    sub = command("list", _list, "list the entries of all cache folders")
    sub.add_argument("pattern", nargs="*", metavar="PATTERN", help=patterns)
    sub = command("info", _info, "show the cache folders, or everything about one entry")
    sub.add_argument("entry", nargs="?", metavar="ENTRY", help="beginning of a digest, or a kernel name")
    sub = command("verify", _verify, "read every entry and check every digest")
    sub.add_argument("--repair", action="store_true", help="remove what is damaged; it is built again when needed")
    sub = command("clear", _clear, "remove entries and self-check records")
    sub.add_argument("pattern", nargs="*", metavar="PATTERN", help=patterns)
    sub.add_argument("--all", action="store_true", help="everything")
    sub.add_argument(
        "--stale",
        action="store_true",
        help="what other drivers, runtimes, compilers or versions of jitmoe have left; kernels built for devices "
        "that are not here stay",
    )
    sub.add_argument("--dry-run", action="store_true", help="only show what would go")
    sub.add_argument("-y", "--yes", action="store_true", help="do not ask")
    sub = command("prune", _prune, "remove the least recently used entries until the rest fits")
    sub.add_argument("--max-size", type=terminal.parse_size, required=True, metavar="SIZE", help="e.g. 500M or 2G")
    sub.add_argument("--dry-run", action="store_true", help="only show what would go")
    sub = command("export", _export, "write entries into a bundle for another machine")
    sub.add_argument("file", type=Path, metavar="FILE", help="the tar file to write")
    sub.add_argument("pattern", nargs="*", metavar="PATTERN", help=patterns)
    sub.add_argument("--device", action="append", metavar="ARCH", help="only entries for this device, e.g. bmg-g21")
    sub = command("import", _import, "verify a bundle and add its entries to the cache")
    sub.add_argument("file", type=Path, metavar="FILE", help="a bundle that jitmoe-cache export wrote")
    sub = command("path", _path, "print the cache folder")
    sub.add_argument("--all", action="store_true", help="all folders, in the order of look-up")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the tool; returns its exit code."""
    return terminal.run(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.function(options, find_layers(knobs.current()))
    except UsageError as error:
        terminal.fail(error)
        return EXIT_USAGE
    return code


if __name__ == "__main__":
    sys.exit(main())
