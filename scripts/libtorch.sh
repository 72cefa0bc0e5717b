#!/usr/bin/env bash
# Gives the workspace a libtorch 2.11.0: the C++ library inside torch's wheel, without Python at run time.
#
#   scripts/libtorch.sh           install into .simloop/ (at once when done already)
#   scripts/libtorch.sh --check   say which libtorch a build would use; exit 1 with a remedy if it would fail
#
# .simloop/torch-site   the unpacked wheels, hash-pinned (libtorch-cpu.txt, or libtorch-cuda.txt beside an NVIDIA GPU)
# .simloop/libtorch     what LIBTORCH points to (.cargo/config.toml): include/, lib/ of relative links, build-version
#
# An exported LIBTORCH is used as it is, after a check of its version. SIMLOOP_CUDA=0|1 overrides the look for a GPU.
set -euo pipefail

need=2.11.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/.simloop
folder=$home/libtorch
site=$home/torch-site

fail() {
    printf 'libtorch: %s\n' "$1" >&2
    exit 1
}

# The release in a libtorch folder, from libtorch's own build-version or from the Python package around it.
version_of() {
    if [ -f "$1/build-version" ]; then
        head -n 1 "$1/build-version" | tr -d '[:space:]'
    elif [ -f "$1/version.py" ]; then
        sed -n "s/^__version__ = ['\"]\(.*\)['\"].*/\1/p" "$1/version.py" | head -n 1
    fi
}

# One line on what is wrong with a libtorch folder; nothing when it can be built against.
fault_of() {
    local found
    [ -d "$1" ] || { echo "$1 is no folder"; return; }
    found=$(version_of "$1")
    [ -n "$found" ] || { echo "$1 has no build-version file: found no version, needed $need"; return; }
    [ "${found%%+*}" = "$need" ] || { echo "$1: found version $found, needed $need"; return; }
    for part in lib/libtorch_cpu.so lib/libc10.so lib/libtorch.so include/torch/csrc/api/include/torch/torch.h; do
        [ -e "$1/$part" ] || { echo "$1 lacks $part"; return; }
    done
}

gpu() {
    case "${SIMLOOP_CUDA:-}" in
        0) return 1 ;;
        1) return 0 ;;
        *) command -v nvidia-smi > /dev/null && nvidia-smi -L 2> /dev/null | grep -q GPU ;;
    esac
}

if [ -n "${LIBTORCH:-}" ] && [ "$(readlink -f "$LIBTORCH")" != "$(readlink -f "$folder")" ]; then
    fault=$(fault_of "$LIBTORCH")
    [ -z "$fault" ] || fail "LIBTORCH is set, but $fault; remedy: \`unset LIBTORCH && make libtorch\`, or point it at a libtorch $need"
    echo "libtorch: $(version_of "$LIBTORCH") in $LIBTORCH (LIBTORCH is set)"
    exit 0
fi

variant=cpu
need_mb=2500 # the wheels packed and unpacked at once: 0.6 + 1.3 GB, rounded up
if gpu; then
    variant=cuda
    need_mb=9000
fi
pins=$root/scripts/libtorch-$variant.txt
stamp="torch $need $variant $(sha256sum "$pins" | cut -c 1-16)"

if [ "$(cat "$folder/stamp" 2> /dev/null)" = "$stamp" ] && [ -z "$(fault_of "$folder")" ]; then
    echo "libtorch: $need ($variant) in .simloop/libtorch"
    exit 0
fi
if [ "${1:-}" = --check ]; then
    fault=$(fault_of "$folder")
    [ -z "$fault" ] || fail "$fault; remedy: \`make libtorch\`"
    echo "libtorch: $need in .simloop/libtorch; \`make libtorch\` would renew it for this machine ($variant)"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "the pinned wheels are for Linux x86_64, not $(uname -sm); remedy: unpack a libtorch $need for it and export LIBTORCH=<folder>"
command -v gcc > /dev/null || fail "no gcc; remedy: \`apt-get install gcc\`"
command -v python3 > /dev/null || fail "no python3; remedy: \`apt-get install python3 python3-pip\`"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' ||
    fail "$(python3 -V) is too old to unpack the wheels, needed 3.8 or newer; remedy: \`apt-get install python3.11\` and put it first in PATH"
python3 -m pip --version > /dev/null 2>&1 || fail "python3 has no pip; remedy: \`apt-get install python3-pip\` or \`python3 -m ensurepip\`"

mkdir -p "$home" 2> /dev/null || fail "cannot write $home; remedy: make the checkout writable"
exec 9> "$home/libtorch.lock"
flock 9 # a second call waits for the first, then finds the stamp
if [ "$(cat "$folder/stamp" 2> /dev/null)" = "$stamp" ] && [ -z "$(fault_of "$folder")" ]; then
    echo "libtorch: $need ($variant) in .simloop/libtorch"
    exit 0
fi
rm -rf "$home"/torch-site.{new,old} "$home"/libtorch.{new,old}
trap 'rm -rf "$home"/torch-site.{new,old} "$home"/libtorch.{new,old}' EXIT

free_mb=$(df -Pm "$home" | awk 'NR == 2 { print $4 }')
[ "$free_mb" -ge "$need_mb" ] ||
    fail "$free_mb MB free in $home, needed $need_mb MB; remedy: free some space, or export LIBTORCH=<a libtorch $need elsewhere>"

# The wheels' own tags are asked for, so any Python with pip can unpack them: libtorch itself needs none.
tags=(--python-version 3.11 --implementation cp --abi cp311 --abi none --platform manylinux2014_x86_64)
for minor in 28 27 25 18 17 12 5; do
    tags+=(--platform "manylinux_2_${minor}_x86_64")
done
echo "libtorch: installing torch $need ($variant) into .simloop/torch-site"
log=$home/libtorch.log
if ! python3 -m pip install --disable-pip-version-check --no-input --no-deps --no-compile --require-hashes \
    --only-binary=:all: "${tags[@]}" --target "$home/torch-site.new" --requirement "$pins" > "$log" 2>&1; then
    tail -n 5 "$log" >&2
    if grep -qi 'no space left' "$log"; then
        fail "the disk is full (TMPDIR counts too); remedy: free $need_mb MB, or set TMPDIR to a folder with room"
    elif grep -qi 'hashes' "$log"; then
        fail "a download does not match its pinned hash; remedy: \`python3 -m pip cache purge\`, then \`make libtorch\` again"
    elif grep -qi 'unrecognized arguments\|no such option' "$log"; then
        fail "pip is too old; remedy: \`python3 -m pip install --upgrade pip\`"
    else
        fail "pip could not fetch the wheels (log: .simloop/libtorch.log); remedy: check the network or PIP_INDEX_URL, then \`make libtorch\` again"
    fi
fi

if [ "$variant" = cpu ]; then
    # Nothing here can load the CUDA half or needs the Python half: 1.3 GB become 0.6.
    find "$home/torch-site.new/torch" -mindepth 1 -maxdepth 1 ! -name include ! -name lib ! -name version.py -exec rm -rf {} +
    find "$home/torch-site.new/torch/lib" -mindepth 1 -maxdepth 1 \
        ! -name libtorch_cpu.so ! -name libc10.so ! -name libgomp.so.1 -exec rm -rf {} +
    rm -rf "$home"/torch-site.new/{torchgen,functorch,bin}
fi

new=$home/libtorch.new
mkdir -p "$new/lib"
ln -s ../torch-site/torch/include "$new/include"
for library in torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp.so.1 \
    nvidia/cu13/lib/libcudart.so.13 nvidia/cu13/lib/libcupti.so.13; do
    [ -e "$home/torch-site.new/$library" ] || fail "the wheels lack $library; remedy: report this with .simloop/libtorch.log"
    ln -s "../../torch-site/$library" "$new/lib/$(basename "$library")"
done
# The wheel's libtorch.so drags libtorch_cuda in; the linker only wants a name that leads to the CPU library.
gcc -shared -o "$new/lib/libtorch.so" -Wl,-soname,libtorch.so -Wl,--no-as-needed \
    -L"$home/torch-site.new/torch/lib" -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined 2>> "$log" ||
    fail "gcc cannot link (log: .simloop/libtorch.log); remedy: \`apt-get install gcc libc6-dev\`"
echo "$need" > "$new/build-version"
echo "$stamp" > "$new/stamp"

# Renames only: a reader sees the old folder or the new one, and the stamp stands only when all of it does.
if [ -e "$site" ]; then mv "$site" "$site.old"; fi
mv "$site.new" "$site"
if [ -e "$folder" ]; then mv "$folder" "$folder.old"; fi
mv "$new" "$folder"
fault=$(fault_of "$folder")
[ -z "$fault" ] || fail "$fault after the installation; remedy: \`rm -rf .simloop/libtorch .simloop/torch-site && make libtorch\`"
echo "libtorch: $need ($variant) in .simloop/libtorch"
