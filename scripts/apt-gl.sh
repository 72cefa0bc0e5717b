#!/usr/bin/env bash
# LIBERO's cameras need an OpenGL without a screen: OSMesa (Debian's libosmesa6), or EGL through Mesa or a GPU driver.
# Says which one is there; as root with apt-get it installs OSMesa, otherwise it prints the line that would.
# Exit 0 when one is there at the end, 1 otherwise. LIBERO without images works either way.
set -euo pipefail

has() { # a library the loader knows, or one in the usual folders where ldconfig's cache is stale
    local ldconfig=ldconfig
    command -v ldconfig > /dev/null || ldconfig=/sbin/ldconfig
    "$ldconfig" -p 2> /dev/null | grep -q "$1" || compgen -G "/usr/lib/*-linux-gnu/$1*" > /dev/null
}

found() {
    if has libOSMesa.so; then
        echo "OpenGL: OSMesa (MUJOCO_GL=osmesa)"
    elif has libEGL.so.1 && { has libEGL_mesa.so.0 || has libEGL_nvidia.so.0; }; then
        echo "OpenGL: EGL (MUJOCO_GL=egl)"
    else
        return 1
    fi
}

if found; then exit 0; fi
line="apt-get install --no-install-recommends -y libosmesa6"
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if $line > /dev/null 2>&1 || { apt-get update > /dev/null 2>&1 && $line > /dev/null 2>&1; }; then
        if found; then exit 0; fi
    fi
    echo "OpenGL: \`$line\` failed; LIBERO runs without images until it, or libegl1 libegl-mesa0 libgl1-mesa-dri libgbm1, is installed" >&2
else
    echo "OpenGL: none found, so LIBERO runs without images; remedy: \`sudo $line\` (or libegl1 libegl-mesa0 libgl1-mesa-dri libgbm1)" >&2
fi
exit 1
