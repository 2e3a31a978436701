# shellcheck shell=bash
# Set-up that lab/run and lab/test share; source it, then call `setup [EXTRA]`. What is there already is left alone, and what
# is going to be installed is said before it is.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# what each is for, in the order of the list: building, verbs, the virtual machine, tracing, network tools, peers of lab/bench
packages=(
    build-essential pkg-config python3-dev python3-venv
    libibverbs-dev librdmacm-dev ibverbs-providers ibverbs-utils rdma-core rdmacm-utils python3-pyverbs
    qemu-system-x86 busybox-static file kmod udev zstd xz-utils
    clang llvm libbpf-dev libelf-dev zlib1g-dev bpftool bpftrace linux-libc-dev
    iproute2 nftables ethtool pciutils procps
    perftest sockperf iperf3
)

# units that packages start as soon as they are installed, and at every boot; only what the tests need has any
declare -A services=()
policy=/usr/sbin/policy-rc.d # invoke-rc.d(8) asks it whether a service may be started

say() { printf 'lab: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 3
}

system_packages() {
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say 'this is not a Debian-like distribution; install what these Debian packages hold, then set HWRX_SKIP_APT=1:'
        printf '  %s\n' "${packages[@]}" >&2
        exit 3
    fi
    local have missing=() units=() package as_root=()
    # shellcheck disable=SC2016
    have=$(dpkg-query -W -f='${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^.i *//p')
    for package in "${packages[@]}"; do
        grep -qxF -- "$package" <<<"$have" && continue
        missing+=("$package")
        [[ -z ${services[$package]-} ]] || units+=("${services[$package]}")
    done
    ((${#missing[@]})) || return 0
    say "installing system packages: ${missing[*]}${units[*]:+; none of their services is started or enabled: ${units[*]}}"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "neither root nor sudo; as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -q >&2 || say 'apt-get update failed; going on with the lists that are there'
    (
        if [[ ${units[*]-} && ! -e $policy ]]; then
            trap '"${as_root[@]}" rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
            "${as_root[@]}" chmod 755 "$policy"
        fi
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
    ) || fail "apt-get could not install: ${missing[*]}"
    # not at the next boot either: who wants the service starts it
    [[ -z ${units[*]-} ]] || ! command -v systemctl >/dev/null ||
        "${as_root[@]}" systemctl disable -q "${units[@]}" >&2 || say "could not disable: ${units[*]}"
}

# Hash of the files on standard input (NUL-separated names), with their names
stamp_of() { sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1; }

virtual_environment() {
    local extra=$1 stamps=$root/.venv/stamps wanted
    # the distribution's pyverbs is built for the distribution's Python, so that one it must be
    if ! "$root/.venv/bin/python" -c 'import sys' 2>/dev/null; then
        say 'making .venv from /usr/bin/python3, with the system'"'"'s site packages (for pyverbs)'
        /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
            fail "/usr/bin/python3 is $(/usr/bin/python3 --version 2>&1); hwrx needs 3.11 or later"
        rm -rf "$root/.venv"
        /usr/bin/python3 -m venv --system-site-packages "$root/.venv" || fail 'could not make .venv'
    fi
    mkdir -p "$stamps"

    # shellcheck disable=SC2046  # none or one
    wanted=$(printf '%s\0' "$(listed "$extra")" $(alone "$extra") | stamp_of)
    if [[ $(cat "$stamps/packages-${extra:-none}" 2>/dev/null) != "$wanted" ]]; then
        install_packages "$extra"
        printf '%s\n' "$wanted" >"$stamps/packages-${extra:-none}"
    fi

    wanted=$(sources | stamp_of)
    if [[ $(cat "$stamps/extensions" 2>/dev/null) != "$wanted" ]] || ! built; then
        say 'building the extensions'
        build
        built || fail 'the extensions were built, but do not import'
        printf '%s\n' "$wanted" >"$stamps/extensions"
    fi
}

# The file that says which Python packages are installed: the lock of the extra, which names each file by its sha256, or
# pyproject.toml, which names versions only
listed() { [[ ${HWRX_UNLOCKED:-} ]] && printf 'pyproject.toml' || printf 'lab/requirements%s.lock' "${1:+-$1}"; }

# The file of those packages of an extra that are installed without what they depend on. Apache Otava is one: forty
# packages read and report what its analysis, which needs NumPy and SciPy, has found
alone() { [[ ${1:-} == test && -e lab/requirements-alone.lock ]] && printf 'lab/requirements-alone.lock'; }

# Only wheels by the lock: a source distribution would fetch what it is built with, which no lock names
install_packages() {
    local extra=$1 pip=("$root/.venv/bin/pip" install -q)
    if [[ ${HWRX_UNLOCKED:-} ]]; then
        say "installing Python packages into .venv: what pyproject.toml lists${extra:+, with [$extra]}, and no hash checked"
        requirements "$extra" >"$root/.venv/requirements.txt"
        "${pip[@]}" -r "$root/.venv/requirements.txt" >&2 || fail 'pip failed'
        [[ -z $(alone "$extra") ]] || "${pip[@]}" --no-deps -r "$(alone "$extra")" >&2 || fail 'pip failed'
        return
    fi
    say "installing Python packages into .venv: the files that $(listed "$extra") names by sha256"
    "${pip[@]}" --require-hashes --only-binary :all: -r "$(listed "$extra")" >&2 ||
        fail 'pip failed; HWRX_UNLOCKED=1 installs what pyproject.toml lists instead, with no hash checked'
    [[ -z $(alone "$extra") ]] ||
        "${pip[@]}" --no-deps --require-hashes --only-binary :all: -r "$(alone "$extra")" >&2 || fail 'pip failed'
}

# What building, running and the extras need, one a line
requirements() {
    "$root/.venv/bin/python" - "$1" <<'PYTHON'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print(*project["build-system"]["requires"], *project["project"]["dependencies"], "wheel", sep="\n")
if sys.argv[1]:
    print(*project["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
PYTHON
}

# Writes the lock files anew, after a change of pyproject.toml; `uv` has to be on PATH, and .venv there. Versions stay as
# they are if they may; `lock_packages --upgrade` takes the newest.
lock_packages() {
    local extra by
    cd "$root" || exit 3
    by="bash -c '. lab/setup.sh && lock_packages'"
    # that of the tests first: what both name is of one version
    for extra in test ''; do
        [[ $extra ]] || set -- "$@" --constraints=lab/requirements-test.lock
        requirements "$extra" | uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
            --custom-compile-command "$by" -o "lab/requirements${extra:+-$extra}.lock" "$@" - >/dev/null || fail 'uv failed'
    done
}

build() {
    local compiler=${CC:-}
    [[ $compiler ]] || ! command -v ccache >/dev/null || compiler='ccache gcc'
    # without debugging information the compiler takes two thirds of the time
    env ${compiler:+"CC=$compiler"} CFLAGS="${CFLAGS--g0}" "$root/.venv/bin/pip" install -q --no-build-isolation --no-deps -e . \
        >"$root/.venv/build.log" 2>&1 && return
    tail -n 40 "$root/.venv/build.log" >&2
    fail 'building hwrx failed (whole output: .venv/build.log)'
}

# All that the extensions are built from
sources() {
    printf '%s\0' pyproject.toml setup.cfg cython_ext/setup_step.py
    # the .c files in cython_ext are what Cython makes
    find cython_ext hwrx \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' \) \
        -not -path 'cython_ext/*.c' -print0
}

# Every extension is there and loads
built() {
    "$root/.venv/bin/python" - 2>/dev/null <<'PYTHON'
import importlib, pathlib
for source in sorted(pathlib.Path("cython_ext").rglob("*.pyx")):
    importlib.import_module(".".join(source.with_suffix("").parts))
PYTHON
}

# The guest reads these files through an emulated file system and cannot write them: compile once, here
byte_code() { "$root/.venv/bin/python" -m compileall -q hwrx cython_ext >&2 || fail 'a module of hwrx does not compile'; }

setup() {
    cd "$root" || exit 3
    [[ ${HWRX_SKIP_APT:-} ]] || system_packages
    virtual_environment "${1:-}"
    byte_code
}
