from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

Places = dict[str, tuple[int, str]]

def kernel_knows(
    functions: Iterable[str], tracepoints: Iterable[str], modules: Iterable[str] = ()
) -> tuple[Places, Places]: ...
def module_btf(name: str) -> int: ...
def aimed(targets: Mapping[str, tuple[int, str]]) -> AbstractContextManager[None]: ...
