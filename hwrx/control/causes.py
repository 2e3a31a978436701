"""Why an agent could not be started, or ended: by what ssh, the shell and the launchers say, and what mends it."""

from __future__ import annotations

import re

# what was said -> what to do, the first that fits; all of it words of OpenSSH, shells and the kernel
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"Could not resolve hostname", "is the name right? `reach` of the inventory, ~/.ssh/config, DNS"),
    (
        r"Connection timed out|No route to host|Network is unreachable|timeout",
        "is the host up, and the way to it? ping it",
    ),
    (r"Connection refused", "is sshd running there, and on that port?"),
    (
        r"kex_exchange_identification|Connection reset by",
        "its ssh server refuses connections: too many at once (MaxStartups of sshd_config), or it is ending; try again",
    ),
    (r"Host key verification failed", "log in once by hand and look at the key: ssh HOST"),
    (r"Permission denied \(|Too many authentication", "ssh must log in without a question: ssh-copy-id HOST"),
    (r"Cannot open network namespace", "ip netns list shows those that there are"),
    (r"Exec format error", "hwrx there is for another architecture: hwrx bench install HOST"),
    (
        r"(hwrx|No module named hwrx\b).*not found|not found.*hwrx|No module named hwrx|hwrx: No such file",
        "hwrx is not there, or not in the PATH of ssh: hwrx bench install HOST; `hwrx` of the inventory names it",
    ),
    (r"No such file or directory|not found|exit code 127", "is the command of `hwrx` or `reach` there, and right?"),
    (r"Permission denied|Operation not permitted", "may this user do that there?"),
    (
        r"killed by SIGKILL|exit code 137",
        "somebody or something killed it there: dmesg of that host says if the kernel did",
    ),
)


def find_remedy(words: str) -> str:
    """Return what to do about an agent that ended with these words; "" if they are of no known cause."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, words)), "")
