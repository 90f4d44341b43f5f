#!/bin/sh
# Whether each set of optional dependencies can be resolved from the package indexes alone, for each Python;
# nothing is installed. What needs PyTorch's CPU build takes it from the wheels of UV_FIND_LINKS or
# PIP_FIND_LINKS where there are any, else from PyTorch's own index.
set -eu
cd "$(dirname "$0")/.."
UV=.venv/bin/uv
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
failed=0
resolve() {
    python=$1
    extra=$2
    shift 2
    if "$UV" pip compile --quiet --no-header --python-version "$python" --extra "$extra" "$@" \
        pyproject.toml -o "$found" 2>"$found.err"; then
        echo "extras: Python $python, $extra: $(grep -c '==' "$found") packages"
    else
        echo "extras: Python $python, $extra: cannot be resolved: $(tail -n 3 "$found.err" | tr '\n' ' ')"
        failed=1
    fi
}
found=$(mktemp)
trap 'rm -f "$found" "$found.err" "$found.torch" "$found.torch.lock"' EXIT
cpu_build() {
    if [ -n "$links" ]; then
        UV_FIND_LINKS=$links resolve "$@" --constraint "$pin"
    else
        resolve "$@" --torch-backend cpu
    fi
    if grep -q '^nvidia-' "$found"; then
        echo "extras: Python $1, $2: PyTorch's CPU build still pulls CUDA"
        failed=1
    fi
}
# All but `dev`, which is for this project's own tests, and `label-cpu`, which is below.
extras=$(.venv/bin/python -c "import tomllib
extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']
print(*(name for name in extras if name not in ('dev', 'label-cpu')))")
pin=$found.torch
echo "torch==$(sed -n 's/^torch==//p' requirements.lock)" >"$pin"
for python in ${PYTHONS:-3.11 3.12 3.13}; do
    for extra in $extras; do
        resolve "$python" "$extra"
    done
done
# The lock serves each Python: every pin has a wheel for it. (PyTorch's own index has its CPU build for each.)
sed 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock >"$pin.lock"
for python in ${PYTHONS:-3.11 3.12 3.13}; do
    if "$UV" pip compile --quiet --no-header --no-deps --only-binary :all: --python-version "$python" \
        "$pin.lock" -o "$found" 2>"$found.err"; then
        echo "extras: Python $python, requirements.lock: every pin has a wheel"
    else
        echo "extras: Python $python, requirements.lock: $(tail -n 3 "$found.err" | tr '\n' ' ')"
        failed=1
    fi
done
# A folder of wheels may hold those of the lock's Python alone.
for extra in train label-cpu; do
    cpu_build 3.11 "$extra"
done
exit "$failed"
