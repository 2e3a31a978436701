"""What reading bytes from outside raises. Apart from `outside`, for what only shows words starts without msgspec."""

from __future__ import annotations

import msgspec

# msgspec's own errors, and what it passes on of strings that are not UTF-8 and of values nested deeper than Python's
# stack. TOML adds only ValueErrors, of which UnicodeError is one.
UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
