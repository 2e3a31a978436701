"""Which words of a run name hosts and their users, and the part that each plays.

A run keeps what was typed, so that `hwrx rerun` can do it again: `ssh:alice@node7.example.org`, an address, a path
below somebody's home. What is published of it says `ssh:server`.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import pathlib
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import get_args

from hwrx.control.environment import parse_environment
from hwrx.control.messages import Pattern
from hwrx.errors import UsageError
from hwrx.paths import PATHS
from hwrx.wires.topology import KNOWN

OWN_NETWORKS = tuple(
    ipaddress.ip_network(each)
    for each in ("127.0.0.0/8", "0.0.0.0/8", "198.18.0.0/15", "192.0.2.0/24", "255.0.0.0/8", "::/127", "2001:2::/48")
)
# a host that is called as something of hwrx's is not found by its name: `udp` has to stay what it is
ORDINARY = frozenset({
    "root", "ssh", "local", "localhost", "agent", "hwrx", "{agent}", "org", "com", "net", *PATHS, *KNOWN,
    *get_args(Pattern),
})  # fmt: skip
# nor does a host by one of these names name anybody, and they stand in many sentences
_TELLING_NOTHING = frozenset({"vm", "guest", "host", "here", "client", "server", "user", "any", "linux", "debian"})
# what a command that starts a peer is made of, beside the host
_STARTERS = frozenset({
    "sudo", "exec", "ip", "netns", "docker", "podman", "kubectl", "run", "env", "nsenter", "sh", "bash", "python3",
    "python", "srun", "mpirun", "chroot", "setpriv", "taskset", "nice", "true", "false",
})  # fmt: skip


def own_home() -> str:
    """Return this user's home folder; "" if there is none, or it is the root of all folders."""
    try:
        home = pathlib.Path.home()
    except RuntimeError:  # a user id that no account has, and no HOME
        return ""
    return str(home) if len(home.parts) > 1 else ""


def own_user() -> str:
    """Return this user's name; "" if no account has the user id."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError: Python 3.13
        return ""


_HOMES = "|".join(filter(None, [re.escape(own_home()), r"/(?:home|Users)/[^/\s'\",;:]+", "/root"]))
HOME = re.compile(rf"(?<![\w.~-])(?:{_HOMES})(?![\w.-])")
# not `veth0@if3`, and no unit of systemd
ACCOUNT_ELSEWHERE = re.compile(r"(?<![\w.@+-])[\w.+-]+@(?![\w.-]*\.(?:service|socket|timer)\b)[\w-]+(?:\.[\w-]+)+")
AT_ROLE = re.compile(r"[\w.+-]+@(client|server|here)\b")


def find_roles(manifest: Mapping[str, object]) -> dict[str, str]:
    """Return words that name hosts and users, each with what is said instead: client, server, here, user.

    :param manifest: of a run, or of anything else that notes its `command` and what was `asked`
    """
    words = _options_of(manifest)
    found: dict[str, str] = {}
    remote = False
    for spec in words["peer"]:
        names = dict.fromkeys(_names_of_peer(spec), "server")
        remote |= bool(names)
        found |= names
    labels = host_labels(manifest)
    remote |= bool(labels)
    found |= labels
    for role, key in (("server", "peer_address"), ("client", "address")):
        found |= {form: role for text in words[key] for form in _forms_of(text)}
    ours = "client" if remote else "here"
    node = platform.node()
    for name in (node, node.partition(".")[0], *_values_of(manifest, "hostname")):
        if isinstance(name, str):
            found.setdefault(name, ours)
    users = {own_user(), os.environ.get("SUDO_USER", ""), pathlib.Path(own_home()).name}
    users |= {text.partition("@")[0] for text in found if "@" in text}
    found |= dict.fromkeys(users - found.keys(), "user")
    return {
        name: role for name, role in found.items() if len(name) > 1 and name.lower() not in ORDINARY | _TELLING_NOTHING
    }


def host_labels(manifest: Mapping[str, object]) -> dict[str, str]:
    """Return the words that name hosts of the inventory, each with its role, or with a number of its own.

    `node7` of many becomes `host7`, and in a set `node[` becomes `host[`: what is said of flows can be read as before.
    """
    asked = manifest.get("asked")
    if not isinstance(asked, dict):
        return {}
    found: dict[str, str] = {}
    stems: dict[str, str] = {}
    for role in ("client", "server"):
        found |= _words_of_host(asked.get(role), role)
    hosts = asked.get("hosts")
    for host in hosts if isinstance(hosts, list) else []:
        name = str(host.get("name", "")) if isinstance(host, dict) else ""
        stem = name.rstrip("0123456789")
        if len(stem) > 1 and name.lower() not in ORDINARY | _TELLING_NOTHING:
            label = stems.setdefault(stem, "host" if not stems else f"host{chr(ord('a') + len(stems) % 26)}")
            found |= {**_words_of_host(host, label + name.removeprefix(stem)), f"{stem}[": f"{label}["}
        else:  # a name such as h7 tells nothing
            found |= {word: name for word in _words_of_host(host, name) if word != name}
    return found


def _words_of_host(host: object, label: str) -> dict[str, str]:
    """Return the words by which a host of the inventory can be known."""
    if not isinstance(host, dict):
        return {}
    words = [str(host.get("name", "")), *_names_of_peer(str(host.get("reach", "")))]
    if host.get("address"):
        words += _forms_of(str(host["address"]))
    return dict.fromkeys(filter(None, words), label)


def _options_of(manifest: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the values of --peer, --peer-address and --address, as the run notes them and as they were typed."""
    found: dict[str, list[str]] = {"peer": [], "peer_address": [], "address": []}
    asked = manifest.get("asked")
    for key, values in found.items():
        if isinstance(asked, dict) and isinstance(asked.get(key), str):
            values.append(asked[key])
        for command in _values_of(manifest, "command"):
            listed = [str(word) for word in command] if isinstance(command, list) else []
            option = f"--{key.replace('_', '-')}"
            values += [listed[place + 1] for place, word in enumerate(listed[:-1]) if word == option]
            values += [word.partition("=")[2] for word in listed if word.startswith(f"{option}=")]
    return found


def _names_of_peer(spec: str) -> Iterator[str]:
    """Yield the words of a peer that name its host."""
    try:
        peer = parse_environment(spec)
    except UsageError:  # it was refused, and stands in the command all the same
        peer = None
    if peer is None or peer.kind == "command":
        yield from _names_in_template(spec)
    elif peer.kind == "ssh":
        yield from _names_of_target(peer.name)


def _names_in_template(spec: str) -> Iterator[str]:
    """Yield what may be a host in a command that starts a peer: any word that is not an option, a number or a path."""
    try:
        words = shlex.split(spec)
    except ValueError:
        words = spec.split()
    for word in words[1:]:
        if not re.match(r"-|/|\{agent\}|\d+$", word) and word not in _STARTERS:
            yield from _names_of_target(word.partition("=")[2] or word)


def _names_of_target(target: str) -> Iterator[str]:
    """Yield the forms of a target of ssh: USER@HOST, HOST, its first label, a domain's other hosts, an address."""
    target = target.removeprefix("ssh://").partition("/")[0]
    yield target
    host = target.rpartition("@")[2]
    if bracketed := re.fullmatch(r"\[(.+)\](?::\d+)?", host):
        host = bracketed[1]
        yield f"[{host}]"
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if user := target.rpartition("@")[0]:
        yield f"{user}@{host}"
    yield from _forms_of(host)


def _forms_of(host: str) -> Iterator[str]:
    """Yield the ways in which a host is written; nothing of an address of the networks that hwrx uses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        yield host
        first, _, domain = host.partition(".")
        if domain:
            yield first
        if "." in domain:
            yield domain
        return
    if not any(address in network for network in OWN_NETWORKS):
        yield from (host, host.partition("%")[0], address.compressed, address.exploded)


def _values_of(tree: object, key: str) -> Iterator[object]:
    """Yield the values of a key anywhere in nested dictionaries and lists."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from _values_of(value, key)
    elif isinstance(tree, list):
        for each in tree:
            yield from _values_of(each, key)
