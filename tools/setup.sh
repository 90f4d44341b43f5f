#!/bin/sh
# Makes .venv from requirements.lock with the project in it (editable), and nothing if that is already so.
#
# PYTHON names the interpreter (default: python3.11; 3.12 and 3.13 do as well). Wheels in the folders of PIP_FIND_LINKS or
# UV_FIND_LINKS are used first; PyTorch's CPU build otherwise comes from PyTorch's own index.
set -eu
cd "$(dirname "$0")/.."

UV_VERSION=$(sed -n 's/^uv==//p' requirements.lock)
TORCH_VERSION=$(sed -n 's/^torch==//p' requirements.lock)
TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON=${PYTHON:-python3.11}

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 2
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "requirements.lock pins wheels for Linux on x86-64, \
this is $(uname -s) on $(uname -m); install without the lock, for example to train: pip install '.[train]'"
command -v "$PYTHON" >/dev/null || fail "no interpreter '$PYTHON': the lock is for Python 3.11 to 3.13; install it
(Debian: apt-get install python3.11 python3.11-venv) or name one: make setup PYTHON=python3.12"
found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $found in
3.11 | 3.12 | 3.13) ;;
*)
    fail "'$PYTHON' is Python $found, but requirements.lock pins wheels for 3.11, 3.12 and 3.13; \
name another with PYTHON=..., or install without the lock: pip install '.[train,label-cpu]'"
    ;;
esac

digest=$found-$(cat requirements.lock requirements-aside.lock requirements-parity.lock requirements-trackers.lock pyproject.toml tools/setup.sh | sha256sum | cut -c1-16)
stamp=.venv/.penumbra-setup
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$digest" ] && [ -x .venv/bin/python ]; then
    exit 0
fi

echo "setup: installing $(grep -c '==' requirements.lock) pinned packages into .venv"
# An environment of another Python is made anew.
made_by=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
if [ ! -x .venv/bin/pip ] || [ "$made_by" != "$found" ]; then
    "$PYTHON" -m venv --clear .venv || fail "'$PYTHON' cannot make a virtual environment; \
on Debian: apt-get install python3.11-venv"
fi
if [ "$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "uv==$UV_VERSION" ||
        fail "pip cannot install uv $UV_VERSION, see above; a mirror is named by PIP_INDEX_URL, a folder of \
wheels by PIP_FIND_LINKS"
fi

UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
export UV_FIND_LINKS
export UV_LINK_MODE="${UV_LINK_MODE:-hardlink}" UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"
# Compiled here once: Ray's and vLLM's many processes would each do it anew where Python may not write.
install() {
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --compile-bytecode "$@"
}
install "torch==$TORCH_VERSION" 2>/dev/null || install "torch==$TORCH_VERSION" --default-index "$TORCH_INDEX" ||
    fail "no wheel of torch $TORCH_VERSION in '${UV_FIND_LINKS:-no find-links}' nor on $TORCH_INDEX"
install -r requirements.lock || fail "not every package of requirements.lock could be installed, see above; \
a mirror is named by UV_DEFAULT_INDEX, a folder of wheels by UV_FIND_LINKS"
DS_BUILD_OPS=0 install --no-build-isolation --target .venv/aside/deepspeed -r requirements-aside.lock ||
    fail "not every package of requirements-aside.lock could be installed, see above"
install --no-build-isolation --target .venv/aside/lm_eval -r requirements-parity.lock ||
    fail "not every package of requirements-parity.lock could be installed, see above"
install --target .venv/aside/trackers -r requirements-trackers.lock ||
    fail "not every package of requirements-trackers.lock could be installed, see above"
# The name of the distribution before it was given one that is free on PyPI.
.venv/bin/uv pip uninstall --quiet --python .venv/bin/python penumbra 2>/dev/null || true
install --no-build-isolation --editable .
printf '%s\n' "$digest" >"$stamp"
echo "setup: done"
